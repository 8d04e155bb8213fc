"""All checks of a set-up, in order, and what they say: printed, and as an exit status."""

from dataclasses import dataclass, field

from nspec_hf.doctor.config import check_config
from nspec_hf.doctor.environment import check_environment
from nspec_hf.doctor.masks import check_masks
from nspec_hf.doctor.model import check_model
from nspec_hf.doctor.regime import check_regime
from nspec_hf.doctor.setup import Check, Finding, NotCheckedError, NotGivenError, Setup
from nspec_hf.doctor.text import check_text
from nspec_hf.doctor.tokenizer import check_tokenizer

CHECKS: dict[str, Check] = {
    "environment": check_environment,
    "model": check_model,
    "tokenizer": check_tokenizer,
    "config": check_config,
    "masks": check_masks,
    "text": check_text,
    "regime": check_regime,
}
"""Kind → its check, in the order in which they are done; a new kind is one file and one line."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the checks of one set-up say."""

    findings: dict[str, list[Finding]] = field(default_factory=dict)
    """Kind → its findings; empty where nothing is amiss."""
    unchecked: dict[str, str] = field(default_factory=dict)
    """Kind → why it could not be looked at, or not at all of it."""
    not_given: list[str] = field(default_factory=list)
    """Kinds that there was nothing to look at."""

    @property
    def exit_status(self) -> int:
        """0: clean. 1: something will go wrong. 2: nothing is known to, but a check could not be done."""
        if any(finding.level == "wrong" for findings in self.findings.values() for finding in findings):
            return 1
        return 2 if self.unchecked else 0

    def __str__(self) -> str:
        """Return a line a check and three a finding."""
        lines = []
        for kind, findings in self.findings.items():
            wrong = sum(finding.level == "wrong" for finding in findings)
            counts = {"will go wrong": wrong, "to know": len(findings) - wrong}
            said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
            said = said or ("not given" if kind in self.not_given else "fine")
            if kind in self.unchecked:
                said = f"{said if findings else 'not checked'} ({self.unchecked[kind]})"
            lines.append(f"{kind}: {said}")
            for finding in findings:
                sign = "✗" if finding.level == "wrong" else "·"
                lines += [f"  {sign} {finding.what}", f"    why:  {finding.why}", f"    mend: {finding.mend}"]
        return "\n".join(lines)


def examine(setup: Setup) -> Report:
    """Do every check of a set-up."""
    report = Report()
    for kind, check in CHECKS.items():
        report.findings[kind] = []
        try:
            report.findings[kind].extend(check(setup))
        except NotGivenError:
            report.not_given.append(kind)
        except NotCheckedError as error:
            report.unchecked[kind] = str(error)
    return report
