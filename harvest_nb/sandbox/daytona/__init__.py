"""The provider `daytona`: sandboxes in production's place, with the unmodified SDK."""

from harvest_nb.sandbox.daytona.account import Account, given_account
from harvest_nb.sandbox.daytona.provider import DaytonaProvider
from harvest_nb.sandbox.daytona.sandbox import DaytonaSandbox

__all__ = ["Account", "DaytonaProvider", "DaytonaSandbox", "given_account"]
