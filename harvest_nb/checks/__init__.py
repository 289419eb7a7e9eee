"""The validation contract: checks as data, run in any sandbox of any provider."""

from harvest_nb.checks.base import GROUPS
from harvest_nb.checks.contract import Contract, load_contract
from harvest_nb.checks.image import dockerfile_start, validate_image
from harvest_nb.checks.layers import validate_build, validate_layers
from harvest_nb.checks.report import COLUMNS, Report, Row
from harvest_nb.checks.run import validate_sandbox
from harvest_nb.checks.start import failed_start

__all__ = [
    "COLUMNS",
    "GROUPS",
    "Contract",
    "Report",
    "Row",
    "dockerfile_start",
    "failed_start",
    "load_contract",
    "validate_build",
    "validate_image",
    "validate_layers",
    "validate_sandbox",
]
