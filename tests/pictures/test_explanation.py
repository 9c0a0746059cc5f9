"""The picture of one packet's way."""

from __future__ import annotations

from xml.etree import ElementTree

from kuproxy.pictures.explanation import PictureEnd, PictureStep, explanation_svg

SVG = "{http://www.w3.org/2000/svg}"


def test_the_way_the_pods_and_the_result() -> None:
    ends = [PictureEnd(f"10.0.0.{number}", "ready", True, number == 30) for number in range(1, 41)]
    picture = explanation_svg(
        "a <packet>", [PictureStep("kp-input", ("read",)), PictureStep("kp-balance")], ends, "sent"
    )
    for forbidden in ("style=", "<style", "<script", "href", "onload"):
        assert forbidden not in picture
    root = ElementTree.fromstring(picture)
    texts = [each.text for each in root.iter(f"{SVG}text")]
    assert "10.0.0.30" in texts, "the chosen one is always drawn"
    assert "and 16 more" in texts and "sent" in texts
    assert len([each for each in root.iter() if each.get("class") == "step"]) == 2
    assert len([each for each in root.iter() if each.get("class") == "chosen"]) == 1
