from __future__ import annotations

from pathlib import Path

import pytest

from convexlayer_server import Settings
from convexlayer_server.errors import SettingsError


def test_environment() -> None:
    environment = {"CONVEXLAYER_MAX_BATCH": "7", "CONVEXLAYER_MAX_TIME_LIMIT_S": "1.5", "OTHER": "x"}
    settings = Settings.from_environment(environment)
    assert settings == Settings(max_batch=7, max_time_limit_s=1.5)
    assert Settings.from_environment({}) == Settings()


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVEXLAYER_MAX_DEPTH", "9")
    assert Settings.from_environment().max_depth == 9


@pytest.mark.parametrize("text", ["", "many", "0", "-1", "1.5", "nan", "inf"])
def test_values_must_be_positive_numbers(text: str) -> None:
    with pytest.raises(SettingsError, match=f"^CONVEXLAYER_MAX_BATCH: .*, got '{text}'$"):
        Settings.from_environment({"CONVEXLAYER_MAX_BATCH": text})
    if text not in ("1.5",):
        with pytest.raises(SettingsError, match=r"^CONVEXLAYER_MAX_TIME_LIMIT_S: "):
            Settings.from_environment({"CONVEXLAYER_MAX_TIME_LIMIT_S": text})


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('max_batch = 7\nmax_depth = 9\nlog_format = "text"\n')
    settings = Settings.from_environment({"CONVEXLAYER_SETTINGS": str(file), "CONVEXLAYER_MAX_DEPTH": "8"})
    assert settings == Settings(max_batch=7, max_depth=8, log_format="text")


@pytest.mark.parametrize(
    ("text", "message"),
    [("max_bath = 7", "^max_bath: "), ("max_batch = 0", "^max_batch: .*, got 0"), ("max_batch", "cannot be read")],
)
def test_invalid_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=message):
        Settings.from_environment({"CONVEXLAYER_SETTINGS": str(file)})
    with pytest.raises(SettingsError, match="cannot be read"):
        Settings.from_environment({"CONVEXLAYER_SETTINGS": str(tmp_path / "none.toml")})


def test_unknown_variables_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    Settings.from_environment({"CONVEXLAYER_MAX_BATH": "7", "CONVEXLAYER_COMPILE": "never"})
    (record,) = caplog.records
    assert isinstance(record.args, tuple)
    assert record.args[0] == "CONVEXLAYER_MAX_BATH"
