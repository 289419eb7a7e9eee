from __future__ import annotations

from pathlib import Path

import pytest

from harvest_nb.errors import SettingsError
from harvest_nb.settings import given_tokens, load_settings


def test_files_are_read_and_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("GITHUB_TOKEN=from-env-file\nHARVEST_IMAGE=a:1\nLINEAR_API_KEY=\n")
    (tmp_path / ".env.local").write_text("GITHUB_TOKEN=from-local-file\n")
    settings = load_settings(tmp_path)
    assert settings.tokens() == {"GITHUB_TOKEN": "from-local-file"}
    assert settings.image == "a:1"
    monkeypatch.setenv("GITHUB_TOKEN", "from-environment")
    assert load_settings(tmp_path).tokens() == {"GITHUB_TOKEN": "from-environment"}


def test_what_lies_in_the_environment_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "ambient")
    assert given_tokens(tmp_path) == {}
    (tmp_path / ".env").write_text("SENTRY_AUTH_TOKEN=explicit\n")
    assert given_tokens(tmp_path) == {"SENTRY_AUTH_TOKEN": "explicit"}


def test_the_desks_own_credentials_are_secrets_that_are_never_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env.local").write_text("DAYTONA_API_KEY=the-key\nDAYTONA_JWT_TOKEN=the-jwt\n")
    assert given_tokens(tmp_path) == {}
    assert load_settings(tmp_path).tokens() == {"DAYTONA_API_KEY": "the-key", "DAYTONA_JWT_TOKEN": "the-jwt"}
    monkeypatch.setenv("DAYTONA_API_KEY", "from-environment")
    assert load_settings(tmp_path).tokens()["DAYTONA_API_KEY"] == "from-environment"
    assert "the-jwt" not in repr(load_settings(tmp_path))


def test_a_wrong_value_names_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARVEST_ENGINE", "maybe")
    with pytest.raises(SettingsError, match="HARVEST_ENGINE"):
        load_settings(tmp_path)


def test_values_never_show(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("GEMINI_API_KEY=the-secret-value\n")
    assert "the-secret-value" not in repr(load_settings(tmp_path))


def test_a_namespace_has_an_image_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HARVEST_NAMESPACE", raising=False)
    assert load_settings(tmp_path).namespace == "default"
    assert load_settings(tmp_path).image == "harvest-daytona-snapshot:latest"
    (tmp_path / ".env").write_text("HARVEST_NAMESPACE=ci-7\n")
    assert load_settings(tmp_path).image == "harvest-daytona-snapshot:ci-7"
    monkeypatch.setenv("HARVEST_IMAGE", "a:1")
    assert load_settings(tmp_path).image == "a:1"


@pytest.mark.parametrize("name", ["CI", "a b", "-a", "a/b", "x" * 64, "latest", "a\n"])
def test_a_namespace_that_cannot_be_a_tag_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARVEST_NAMESPACE", name)
    with pytest.raises(SettingsError, match="HARVEST_NAMESPACE"):
        load_settings(tmp_path)
