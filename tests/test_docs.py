"""What the docs name exists: links, anchors, paths, make targets, a valid config; and they use the field's words."""

import re
from itertools import chain
from pathlib import Path

import pytest

from pipeline.run import RENAMED_KEYS, load_run

REPOSITORY = Path(__file__).parents[1]
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *(REPOSITORY / folder / name for folder, name in (("shards", "README.md"), ("checkpoints", "README.md"))),
    REPOSITORY / "examples" / "README.md",
    REPOSITORY / "benchmarks" / "gpu_plan.md",
]
README_LINES = 150

FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
# Folders of the repository; what lies under shards/, checkpoints/ and data/ is made by runs.
TREE = ("dreamdistill", "pipeline", "stages", "tests", "configs", "cifar10", "benchmarks", "docs", "examples", ".ci")
FILE = re.compile(rf"(?:{'|'.join(map(re.escape, TREE))})/[\w./-]*")
# Configs that a reader writes.
PLACEHOLDERS = ("configs/mine.yaml", "configs/x.yaml")
MAKE = re.compile(r"\bmake((?:[ \t]+[A-Z_]+=(?:\"[^\"]*\"|[^\s\"]+))*)[ \t]+([a-z-]+)\b")
TARGETS = re.compile(r"^([a-z][a-z -]*):(?!=)", re.MULTILINE)
LAYOUT_LINE = re.compile(r"^([\w/]+/) +(.+)$", re.MULTILINE)

# Words of former versions and private metaphors, and what stands for them now.
BANNED = {
    r"rivals?": "student, competing",
    r"judg\w*|verdicts?|opinions?|evidence": "score, prediction, metadata, verifier",
    r"canvas(?:es)?": "inputs, init_noise",
    r"World|leaders?|workers?": "DistributedContext, main process, process, rank",
    r"Tally|Likeness": "ClassificationMetrics, Agreement",
    r"recovered": "accuracy retention",
    r"zoom\w*": "random resized crop",
    r"shift_px": "jitter_px, crop_padding_px",
    r"photos?": "folders of real images",
    r"hold_in_memory|held(?![- ]out)": "preload, cached",
    r"refuse_other|claim_folder": "require_same_identity, write_identity",
    r"whoever": "",
    r"\w*(?:synthesi|optimi|normali|recogni|organi|initiali)s(?:e|ed|es|ing|ation)": "US spelling",
    r"colou\w*|centre\w*|behaviou\w*|grey|licence|distils?|learnt|aeroplanes?": "US spelling",
}
BANNED_WORD = re.compile(rf"(?<![-\w])(?:{'|'.join(BANNED)})(?![-\w])")


SOURCES = sorted(
    path
    for folder in ("dreamdistill", "pipeline", "stages", "cifar10", "configs")
    for path in (REPOSITORY / folder).rglob("*")
    if path.suffix in (".py", ".yaml")
)


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", text)):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        numbered = (slug if i == 0 else f"{slug}-{i}" for i in range(len(found) + 1))
        found.add(next(s for s in numbered if s not in found))
    return found


def code_of(text: str) -> list[str]:
    """Fenced blocks and inline code."""
    return FENCE.findall(text) + SPAN.findall(FENCE.sub("", text))


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


@each_page
def test_every_relative_link_and_anchor_resolves(page):
    broken = []
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    assert broken == []


@each_page
def test_every_file_in_backticks_exists(page):
    spans = SPAN.findall(FENCE.sub("", page.read_text()))
    named = set(chain.from_iterable(span.split() for span in spans)) - set(PLACEHOLDERS)
    assert [n for n in sorted(named) if FILE.fullmatch(n) and not (REPOSITORY / n).exists()] == []


@each_page
def test_every_make_target_exists(page):
    targets = set(chain.from_iterable(t.split() for t in TARGETS.findall((REPOSITORY / "Makefile").read_text())))
    named = {target for code in code_of(page.read_text()) for _, target in MAKE.findall(code)}
    assert named - targets == set()


@each_page
def test_the_words_are_the_fields(page):
    text = page.read_text()
    for old in RENAMED_KEYS:
        text = text.replace(f"`{old}`", "")
    if page.name == "CHANGELOG.md":
        text = SPAN.sub("", text)  # old keys of written files
    assert BANNED_WORD.findall(text) == []


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text().splitlines()) <= README_LINES


def test_the_readmes_config_is_valid(tmp_path):
    _, _, rest = (REPOSITORY / "README.md").read_text().partition("```yaml\n")
    path = tmp_path / "mine.yaml"
    path.write_text(rest.partition("```")[0])
    assert load_run(path).images.shape == (3, 32, 32)


def test_the_layout_of_the_architecture_page_is_the_tree():
    _, _, rest = (REPOSITORY / "docs" / "architecture.md").read_text().partition("## Layout\n\n```\n")
    listed = {
        f"{folder}{name}" for folder, names in LAYOUT_LINE.findall(rest.partition("```")[0]) for name in names.split()
    }
    modules = chain.from_iterable((REPOSITORY / folder).rglob("*.py") for folder in ("stages", "pipeline", "cifar10"))
    assert listed == {name_of(path) for path in modules if path.name != "__init__.py"}


@pytest.mark.parametrize("path", [*SOURCES, REPOSITORY / "pyproject.toml", REPOSITORY / "Makefile"], ids=name_of)
def test_sources_use_the_words_of_the_field(path):
    text = path.read_text()
    for old in RENAMED_KEYS:
        text = text.replace(f'"{old}"', "")
    assert BANNED_WORD.findall(text) == []
