"""An explanation as a picture."""

from __future__ import annotations

from kuproxy.explain.report import Explanation
from kuproxy.explain.text import headline, outcome_text
from kuproxy.pictures.explanation import PictureEnd, PictureStep, explanation_svg

__all__ = ["picture"]


def picture(told: Explanation) -> str:
    """SVG."""
    steps = [
        PictureStep(headline(told), (f"flow hash 0x{told.packet.hash:08x}, worker {told.packet.worker}",))
    ]
    if told.vip is not None:
        chosen = next((each.rule for each in told.candidates if each.verdict == "chosen"), "")
        lost = sum(each.verdict == "lost" for each in told.candidates)
        rivals = (f"{lost} other{'s' * (lost > 1)} lost",) if lost else ()
        steps.append(PictureStep(f"VIP {told.vip}", (chosen, *rivals)))
    if told.ring is not None:
        before = f", before: {told.ring.before}" if told.ring.before else ""
        owner = f"owner {told.ring.owner}{before}"
        steps.append(PictureStep(f"slot {told.ring.slot} of {told.ring.slots}", (owner,)))
    steps += [PictureStep(step.node, tuple(step.what)) for step in told.steps]
    ends = [PictureEnd(each.pod, each.rule, each.serves, each.chosen) for each in told.endpoints]
    result = f"{outcome_text(told)}: {told.sentence}"
    return explanation_svg(headline(told), steps, ends, result, dropped=told.outcome == "drop")
