from __future__ import annotations

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
def test_values_that_are_no_positive_numbers(text: str) -> None:
    with pytest.raises(SettingsError, match="CONVEXLAYER_MAX_BATCH must be a positive int"):
        Settings.from_environment({"CONVEXLAYER_MAX_BATCH": text})
    if text not in ("1.5",):
        with pytest.raises(SettingsError, match="CONVEXLAYER_MAX_TIME_LIMIT_S must be a positive float"):
            Settings.from_environment({"CONVEXLAYER_MAX_TIME_LIMIT_S": text})
