"""What MkDocs does for this site besides its plugins; `mkdocs.yml` names this file.

- The tutorials and some other pages are executed (execute.py), and shown with what their programs printed and drew.
- The pages of commands and recipes are generated from the commands and recipes themselves.
- CHANGELOG.md, CONTRIBUTING.md and SECURITY.md of the repository become pages.
- A paragraph that is a link from the name of a class or function to a file of the repository becomes its source.
- Fences ```math, and formulas between dollars in explanations, become MathML, which browsers draw without a script.
"""

import importlib
import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.cli import get_docs_for_click
from typer.main import get_command

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "docs"), str(ROOT)]  # MkDocs runs hooks by their path

import execute  # noqa: E402

from iformer.training import recipes  # noqa: E402
from iformer_command import cli  # noqa: E402

WORK = ROOT / "build/tutorials"
"""Where pages are executed. As long as none of them changes, what they left there is used again."""
LANES = (
    ("tutorials/fine_tune.md", "tutorials/ship.md", "tutorials/see.md"),
    ("tutorials/detect.md", "tutorials/segment.md", "tutorials/ramp.md"),
    ("explanation/architecture.md", "explanation/pooled_attention.md", "explanation/multiply_adds.md"),
)
"""The pages that are executed; those of a row one after the other, because they may continue each other."""
SHARED = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
SOURCE = re.compile(r"^\[`([\w.]+)`\]\((?:\.\./)+([\w/]+)\.py\)$", re.MULTILINE)
FORMULA = re.compile(r"\$(\S[^$\n]*)\$")
ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):<code>~?")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let fences ```math be drawn."""
    fence = {"name": "math", "class": "math", "format": math}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    return config


def math(source: str, *_: Any, **__: Any) -> str:
    """Return the HTML of equations in LaTeX, each in a line."""
    return "".join(f"<p>{convert(line, display='block')}</p>" for line in source.splitlines() if line.strip())


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are generated, and the pictures that the tutorials draw."""
    for name in SHARED:
        text = (ROOT / name).read_text().replace("](docs/", "](")
        files.append(File.generated(config, name, content=text))
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    files.append(File.generated(config, "reference/recipes.md", content=all_recipes()))
    try:
        execute.execute(ROOT / "docs", LANES, WORK)
    except execute.FailedError as error:
        raise PluginError(str(error)) from error
    for page in (page for lane in LANES for page in lane):
        for picture in execute.pictures(executed(page)):
            if (WORK / picture).is_file():
                address = f"{Path(page).parent}/{picture}"
                files.append(File.generated(config, address, abs_src_path=str(WORK / picture)))
    return files


def commands() -> str:
    """Return the page of all commands, from their help."""
    command = get_command(cli.app)
    context = command.make_context("iformer", ["list"])
    parts = [
        get_docs_for_click(obj=each, ctx=context, indent=1, call_prefix="iformer")
        for each in command.commands.values()  # type: ignore[attr-defined]
    ]
    text = "\n".join(parts).replace("```console\n$ ", "```text\n")
    return f"# Commands\n\nWhat `iformer COMMAND --help` says.\n\n{text}"


def all_recipes() -> str:
    """Return the page of all recipes, from their files."""
    parts = [
        "# Recipes\n\nThe files behind the names that `--config` takes. `base` names another recipe: its settings hold "
        "unless they stand here again. [Training](../training.md#by-a-recipe) says how to use and change them.\n"
    ]
    folder = ROOT / "iformer/recipes"
    for file in sorted(folder.rglob("*.yaml"), key=lambda file: (len(file.parts), file)):
        name = str(file.relative_to(folder).with_suffix(""))
        recipes.read(recipes.find(name))  # a name that `--config` does not take would be an error here
        parts.append(f"## {name}\n\n```yaml\n{file.read_text()}```\n")
    return "\n".join(parts)


def executed(page: str) -> str:
    """Return a page with what its programs printed."""
    return (WORK / "pages" / page).read_text()


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Show what programs printed, sources and formulas; let links to the repository's pages be to those of the site."""
    address = page.file.src_uri
    if any(address in lane for lane in LANES):
        markdown = executed(address)
    if address.startswith("explanation/"):
        markdown = FORMULA.sub(lambda formula: f"<span>{convert(formula[1])}</span>", markdown)
    to_top = "../" * address.count("/")
    markdown = re.sub(rf"\]\((?:\.\./)+({'|'.join(SHARED)})", rf"]({to_top}\1", markdown)
    return SOURCE.sub(lambda link: source(link[1], link[2].replace("/", ".")), markdown)


def source(name: str, module: str) -> str:
    """Return a fence with the source of a class or function."""
    found: Any = importlib.import_module(module)
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise PluginError(f"{module} has no {name}") from error
    lines = textwrap.dedent(inspect.getsource(found))
    return f'```python title="{module.replace(".", "/")}.py: {name}"\n{lines}```'


def on_page_content(html: str, **_: Any) -> str:
    """Leave the names of Sphinx's roles out, which docstrings have before the names of classes and functions."""
    return ROLE.sub("<code>", html)
