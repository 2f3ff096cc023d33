"""Icons in a few kilobytes: of Font Awesome's two thousand, the pages get the two dozen that they use.

The theme brings the whole fonts, a style sheet for all of them, and a script that draws them once more:
2 MB, of which a page fetched 1.9. What the theme's templates say of them is left out of the pages by
``otbook_accessibility``.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from fontTools import subset
from sphinx.application import Sphinx

NAMED = re.compile(r"\bfa-([a-z0-9-]+)")
RULE = re.compile(r'((?:\.fa-[\w-]+:{1,2}before,?)+)\{content:"\\([0-9a-f]+)"\}')
#: In style sheets the theme writes icons by their code, escaped or as the private character itself.
CODED = re.compile(r"\\(f[0-9a-f]{3})\b|([\uf000-\uf8ff])")
FACE = re.compile(r"@font-face\{[^}]*\}")
SOURCE = re.compile(
    r'url\(\.\./webfonts/([\w-]+)\.woff2\) format\("woff2"\),url\([^)]*\) format\("truetype"\)'
)


def reduced(sheet: str, names: set[str], codes: set[int]) -> tuple[str, set[int]]:
    """The style sheet with the icons of these names only, and the codes of all icons that are left."""
    left = set(codes)

    def keep(rule: re.Match[str]) -> str:
        if not names & set(NAMED.findall(rule.group(1))):
            return ""
        left.add(int(rule.group(2), 16))
        return rule.group()

    sheet = RULE.sub(keep, sheet)
    sheet = FACE.sub(lambda face: face.group() if r"Font Awesome\ 6" in face.group() else "", sheet)
    return SOURCE.sub(r'url(../webfonts/\1.woff) format("woff")', sheet), left


def keep_used_icons(app: Sphinx, error: Exception | None) -> None:
    """Replace Font Awesome in the built book by what its pages, scripts and style sheets use."""
    if error is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    for sheet in out.glob("_static/vendor/fontawesome/*/css/all.min.css"):
        folder = sheet.parents[1]
        shutil.rmtree(folder / "js", ignore_errors=True)
        others = [
            p for kind in ("html", "js", "css") for p in out.rglob(f"*.{kind}") if folder not in p.parents
        ]
        text = {p: p.read_text(encoding="utf-8") for p in others if "mathjax" not in p.parts}
        names = {name for page in text.values() for name in NAMED.findall(page)}
        styles = [page for p, page in text.items() if p.suffix == ".css"]
        codes = {int(a, 16) if a else ord(b) for page in styles for a, b in CODED.findall(page)}
        small, codes = reduced(sheet.read_text(encoding="utf-8"), names, codes)
        sheet.write_text(small, encoding="utf-8")
        for font in (folder / "webfonts").glob("*.ttf"):
            wanted = ",".join(f"{code:x}" for code in sorted(codes))
            target = font.with_suffix(".woff")
            subset.main([str(font), f"--unicodes={wanted}", "--flavor=woff", f"--output-file={target}"])
            font.unlink()
            font.with_suffix(".woff2").unlink(missing_ok=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the function above to the end of the build."""
    app.connect("build-finished", keep_used_icons)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
