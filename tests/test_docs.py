"""Pages that are made from the code are those of this code."""

import importlib.util
from pathlib import Path

from kuproxy.vppcli.apply import Desired

DOCS = Path(__file__).parents[1] / "docs"


def test_the_counters_page_is_up_to_date():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.counters_page() == (DOCS / "counters.md").read_text(), "run: python docs/generate.py"


def test_the_script_in_the_readme_is_accepted():
    readme = (DOCS.parent / "README.md").read_text()
    script = readme.split("A script, with VPP's abbreviations")[1].split("VIPs are prefix")[0]
    lines = [line.strip() for line in script.splitlines() if line.startswith("    ")]
    assert len(lines) > 8
    desired = Desired()
    desired.run("\n".join(lines), "README.md")
    assert len(desired.vips) == 5
