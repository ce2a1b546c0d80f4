"""Summary of the derivative checks at the end of a test run: draws, rejections, worst errors."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest


@dataclass
class Check:
    """Statistics of one test: programs drawn, draws rejected as degenerate, and the worst relative errors."""

    draws: int = 0
    rejected: int = 0
    errors: dict[str, float] = field(default_factory=dict)

    def record(self, **errors: float) -> None:
        """Update the worst error of each kind."""
        for name, error in errors.items():
            self.errors[name] = max(self.errors.get(name, 0.0), error)


CHECKS = pytest.StashKey[dict[str, Check]]()


@pytest.fixture
def check(request: pytest.FixtureRequest) -> Check:
    """Statistics of the current test."""
    checks = request.config.stash.setdefault(CHECKS, {})
    return checks.setdefault(request.node.name, Check())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    checks = config.stash.get(CHECKS, {})
    if not checks:
        return
    terminalreporter.section("derivatives: worst relative errors")
    for name, check in checks.items():
        errors = "  ".join(f"{kind} {error:.1e}" for kind, error in check.errors.items())
        terminalreporter.line(f"{name}: {check.draws} draws, {check.rejected} rejected; {errors}")
    draws, rejected = (sum(getattr(check, key) for check in checks.values()) for key in ("draws", "rejected"))
    terminalreporter.line(f"{rejected} of {draws} draws rejected as degenerate ({rejected / max(draws, 1):.1%})")
