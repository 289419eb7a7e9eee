from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

BEGIN = "import sys, harvest_nb, claude_agent_sdk, jsonschema; assert 'lark' not in sys.modules; "
END = "; assert 'lark' in sys.modules"
CHECK = """
checker = jsonschema.FormatChecker()
assert checker.conforms("https://exämple.org/ö", "iri")
assert not checker.conforms("no iri", "iri")
assert checker.conforms("../ö", "iri-reference")
assert not checker.conforms("<>", "iri-reference")
"""


def python(code: str) -> None:
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_the_grammar_is_compiled_when_an_iri_is_checked() -> None:
    python(BEGIN + CHECK + END[2:])


def test_the_packages_other_names_are_there() -> None:
    python(
        BEGIN + "from rfc3987_syntax import is_valid_syntax_iri as valid" + END + "; assert valid('http://a')"
    )
    python(
        BEGIN
        + "import rfc3987_syntax.syntax_helpers as part"
        + END
        + "; assert part.is_valid_syntax_iri('http://a')"
    )


def test_a_package_that_is_there_already_stays() -> None:
    python("import rfc3987_syntax as one, harvest_nb, sys; assert sys.modules['rfc3987_syntax'] is one")
