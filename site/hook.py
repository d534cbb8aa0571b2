"""What MkDocs is told beside ``mkdocs.yml``: pages that are made from the code, and links that leave ``docs``.

The guides are read in two places: in the repository and on the site. A link to a file outside of ``docs`` leads, on the
site, to a page with that file: README, CHANGELOG and CONTRIBUTING as they are, others as a listing.
"""

from __future__ import annotations

import posixpath
import re
from html.parser import HTMLParser
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import tada
from tada.models.published import DATA_SETS, Checkpoint, published_checkpoints
from tada.recognition.recipe import EXPECTED

ROOT = Path(__file__).parent.parent
_TEXTS = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Pages of the repository, and where they are on the site."""
_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)

PUBLIC = {
    "networks": ["create_model", "list_models", "class_names", "adapt", "AdaptReport"],
    "layers": ["TAdaConv2d", "TAdaConv3d", "Routing", "RoutingV2", "TemporalAggregation"],
    "models": ["load", "predict", "Recognizer", "Prediction", "Explanation", "Localizer", "Localization", "ClipSpec"],
    "training": ["train", "evaluate", "Evaluation", "Recipe", "load_recipe", "push_to_hub", "UserError"],
}
"""Pages of the reference, and the names of ``tada.__all__`` on each."""
DEEPER = [
    "tada.models.weights.convert_published",
    "tada.models.fuse.fuse",
    "tada.localization.metrics.detection_map",
    "tada.localization.metrics.DetectionScores",
]
"""Names in modules of their own that are public too."""


# -- events of MkDocs -------------------------------------------------------------------------------------------------


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here, and put them into the navigation."""
    rows = {f"published/{slug(row)}.md": row for row in published_checkpoints()}
    made = {
        "published/index.md": published_index(rows),
        **{path: published_page(row) for path, row in rows.items()},
        **{f"reference/{name}.md": reference_page(name, PUBLIC[name]) for name in PUBLIC},
        "reference/more.md": "# In modules of their own\n\n" + "\n\n".join(f"::: {name}" for name in DEEPER),
        "reference/index.md": reference_index(),
        **{page: (ROOT / text).read_text(encoding="utf-8") for text, page in _TEXTS.items()},
    }
    texts = [(ROOT / "docs" / file.src_uri).read_text(encoding="utf-8") for file in files.documentation_pages()]
    for source in linked_sources([*texts, *(made[page] for page in _TEXTS.values())]):
        made[source_page(source)] = listing(source)
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    config.nav = [
        {"TAda": "index.md"},
        *(config.nav or []),
        {"Published results": ["published/index.md", *rows]},
        {"Reference": ["reference/index.md", *(f"reference/{name}.md" for name in PUBLIC), "reference/more.md"]},
        {"Project": ["changelog.md", "contributing.md", *sorted(path for path in made if path.startswith("source/"))]},
    ]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that are right in the repository into links that are right on the site."""
    path = page.file.src_uri
    return with_links_of_site(markdown, path) if path in _TEXTS.values() or "/" not in path else markdown


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a site that loads anything from another host.

    The theme's own script names hosts, which it asks only for diagrams and a repository's numbers; there are none.
    """
    wrong = []
    for file in sorted(Path(config.site_dir).rglob("*")):
        if file.suffix in (".html", ".css"):
            wrong += [f"{file}: {address}" for address in foreign(file.read_text(encoding="utf-8"), file.suffix)]
    if wrong:
        raise PluginError("\n".join(["a page loads from another host:", *wrong[:20]]))


class _Loaded(HTMLParser):
    """Collects what a page loads by itself, which links that a reader follows do not."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and (name in ("src", "srcset", "data", "poster", "style") or (tag == "link" and name == "href")):
                self.addresses.append(value)


def foreign(text: str, suffix: str) -> list[str]:
    """Addresses of other hosts that an HTML or CSS file loads."""
    parser = _Loaded()
    if suffix == ".html":
        parser.feed(text)
    loaded = [*parser.addresses, *re.findall(r"(?:url\(|@import)[^;)]*", text)]
    return [address for address in loaded if re.search(r"(https?:)?//[\w.-]+\.\w", address)]


# -- links ------------------------------------------------------------------------------------------------------------


def with_links_of_site(markdown: str, page: str) -> str:
    """The text of a page with its links as they are on the site; code is left as it is."""
    folder = "" if page in _TEXTS.values() else "docs"

    def on_site(match: re.Match[str]) -> str:
        path, mark, anchor = match[0].partition("#")
        if not path or "://" in path:
            return match[0]
        return site_path(posixpath.normpath(posixpath.join(folder, path))) + mark + anchor

    parts, at = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_LINK.sub(on_site, markdown[at : fence.start()]), fence[0]]
        at = fence.end()
    return "".join([*parts, _LINK.sub(on_site, markdown[at:])])


def site_path(path: str) -> str:
    """Where a file of the repository is on the site."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return _TEXTS.get(path) or source_page(path)


def source_page(path: str) -> str:
    """The page of the site that lists a file of the repository."""
    return f"source/{path}.md"


def linked_sources(texts: list[str]) -> set[str]:
    """Files of the repository that pages link to, and that are no pages themselves."""
    found = set()
    for text in texts:
        for link in _LINK.findall(_FENCE.sub("", text)):
            path = posixpath.normpath(posixpath.join("docs", link.partition("#")[0]))
            if not path.startswith("docs/") and path not in _TEXTS and "://" not in link and (ROOT / path).is_file():
                found.add(path)
    return found


def listing(path: str) -> str:
    """A page that shows a file."""
    kinds = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".sh": "sh"}
    text = (ROOT / path).read_text(encoding="utf-8")
    return f"# {path}\n\n````{kinds.get(Path(path).suffix, 'text')}\n{text.rstrip()}\n````\n"


# -- the reference ----------------------------------------------------------------------------------------------------


def reference_page(title: str, names: list[str]) -> str:
    """A page of the reference."""
    return f"# {title.capitalize()}\n\n" + "\n\n".join(f"::: {tada._HOME[name]}.{name}" for name in names)


def reference_index() -> str:
    """What ``import tada`` gives, with links to the pages."""
    lines = ["# Reference", "", "Everything that `import tada` gives; each name is imported when it is first used.", ""]
    for page, names in PUBLIC.items():
        links = ", ".join(f"[`tada.{name}`]({page}.md#{tada._HOME[name]}.{name})" for name in names)
        lines.append(f"- [{page.capitalize()}]({page}.md): {links}")
    deeper = ", ".join(f"[`{name}`](more.md#{name})" for name in DEEPER)
    return "\n".join([*lines, f"- [In modules of their own](more.md): {deeper}", ""])


# -- published results ------------------------------------------------------------------------------------------------


def slug(row: Checkpoint) -> str:
    """The name of a row's page."""
    start = re.sub(r"[^a-z0-9]+", "-", row.trained_from.lower())
    return "_".join(filter(None, [row.network, row.data_set, f"{row.num_frames or ''}", start]))


def published_index(rows: dict[str, Checkpoint]) -> str:
    """The table of all rows."""
    lines = [
        "# Published results",
        "",
        "Checkpoints that the authors released, as `tada models --published` lists them; top-1 and top-5 in percent.",
        "[How to repeat them](../reproduce.md), [how to use their weights](../weights.md#the-authors-checkpoints).",
        "",
        "| network | trained from | data | frames | views | top-1 | top-5 |",
        "|---|---|---|---|---|---|---|",
    ]
    for path, row in rows.items():
        link = f"[`{row.network}`]({posixpath.basename(path)})"
        cells = [link, row.trained_from, DATA_SETS[row.data_set], row.num_frames, row.views, row.top1, row.top5]
        lines.append("| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def published_page(row: Checkpoint) -> str:
    """The page of one row."""
    data_set, frames = DATA_SETS[row.data_set], f", {row.num_frames} frames" if row.num_frames else ""
    facts = {
        "network": f"`{row.network}`",
        "trained and tested on": data_set,
        "trained from": row.trained_from,
        "frames of a clip": row.num_frames,
        "views of the test (clips x crops)": row.views,
        "top-1": row.top1 and f"{row.top1} %",
        "top-5": row.top5 and f"{row.top5} %",
        "where the link to the file stands": row.page,
    }
    lines = [f"# {row.network}, {data_set}{frames}", "", "| what | |", "|---|---|"]
    lines += [f"| {what} | {'not stated' if fact is None else fact} |" for what, fact in facts.items()]
    command = row.command()
    if command:
        views = f" --views {row.views}" if row.views else ""
        lines += ["", "## Use its weights", "", "FILE is what you downloaded, DIR a new folder:", "", "```sh", command]
        lines += ["tada predict DIR new.mp4", f"tada evaluate DIR DATA{views}", "```"]
    recipes = matching_recipes(row)
    if recipes:
        lines += ["", "## Train it", "", "```sh"]
        lines += [*(f"tada train DATA --recipe {name} --out runs/{name}" for name in recipes), "```", ""]
        lines += ["Initial weights, data and several GPUs: [reproduce.md](../reproduce.md)."]
    lines += ["", "## In Python", "", "```python", "import tada", ""]
    lines += [f'network = tada.create_model("{row.network}")  # random weights', "```"]
    return "\n".join([*lines, "", "[All published results](index.md)", ""])


def matching_recipes(row: Checkpoint) -> list[str]:
    """The recipes whose published accuracy is this row's."""
    return [
        name
        for name, expected in EXPECTED.items()
        if name.startswith(f"{row.data_set}_{row.network.removesuffix('_ssv2')}")
        and row.top1 is not None
        and abs(expected.metrics.get("top1", 0.0) - row.top1 / 100) < 1e-9
    ]
