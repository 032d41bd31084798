"""Answers as HTML: Markdown and formulas of untrusted text, in which nothing can run.

The text becomes elements of a fixed set, never HTML of its own: no tags, links, images. Formulas
become MathML, which browsers draw without help; one that can't be read stays as it was written.
"""

import html
import re
from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert_to_element
from markdown_it import MarkdownIt
from markupsafe import Markup, escape
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.texmath import texmath_plugin

# Longer formulas are left as text, and those that define something, which may grow without end.
LONGEST_FORMULA = 2000
DEFINES = re.compile(
    r"\\(re|provide)?newcommand|\\\w*def\b|\\let\b|\\Declare|\\(re)?newenvironment"
)
# The parser takes quadratic time for some texts: longer ones, or fuller of formulas, stay text.
LONGEST_TEXT, MOST_MARKS = 12_000, 300
MARKS = re.compile(r"\$|\\[(\[]")
ELEMENTS = frozenset(
    "math mrow mi mn mo mtext ms mspace mfrac msqrt mroot msub msup msubsup munder mover "
    "munderover mmultiscripts mprescripts mtable mtr mtd mstyle mpadded mphantom menclose".split()
)
ATTRIBUTES = frozenset(
    "display displaystyle scriptlevel mathvariant stretchy fence form separator lspace rspace "
    "minsize maxsize symmetric movablelimits accent accentunder linethickness columnalign "
    "rowspacing columnspacing columnlines rowlines width height depth voffset notation".split()
)
PLAIN = re.compile(r"[\w .%+-]*")


def rendered(text: str) -> Markup:
    """``text`` as HTML."""
    if len(text) > LONGEST_TEXT or len(MARKS.findall(text)) > MOST_MARKS:
        return Markup("<pre>{}</pre>").format(text)
    return Markup(_MARKDOWN.render(text))  # noqa: S704 (made of escaped text, see above)


def formula(latex: str, display: str = "inline") -> Markup:
    """A formula as MathML; as it was written if it can't be read. ``display``: inline or block."""
    if len(latex) <= LONGEST_FORMULA and not DEFINES.search(latex):
        try:
            return _checked(convert_to_element(latex, display=display))
        except Exception:  # noqa: S110 (it raises all kinds, a RecursionError too)
            pass
    return Markup('<code class="formula">{}</code>').format(latex)


def _checked(element: Element) -> Markup:
    """``element`` as text: known elements and attributes only, all text escaped.

    The library's own text form leaves what a formula calls text as it is, tags and all.
    """
    inside = escape(html.unescape(element.text or ""))
    for child in element:
        inside += _checked(child) + escape(html.unescape(child.tail or ""))
    if element.tag not in ELEMENTS:
        return inside
    attributes = Markup().join(
        Markup(' {}="{}"').format(name, value)
        for name, value in element.attrib.items()
        if name in ATTRIBUTES and PLAIN.fullmatch(value)
    )
    return Markup("<{0}{1}>{2}</{0}>").format(element.tag, attributes, inside)


def _markdown() -> Any:
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.disable(["image", "link", "autolink", "html_inline", "html_block", "reference"])
    parser.use(texmath_plugin, delimiters="brackets")
    parser.use(
        dollarmath_plugin,
        allow_labels=False,
        allow_space=False,
        allow_digits=False,
        allow_blank_lines=False,
        double_inline=True,
    )

    def inline(_self: Any, tokens: Any, at: int, *_: Any) -> str:
        return formula(tokens[at].content)

    def block(_self: Any, tokens: Any, at: int, *_: Any) -> str:
        return formula(tokens[at].content, "block")

    parser.add_render_rule("math_inline", inline)
    for name in ("math_block", "math_block_eqno", "math_inline_double"):
        parser.add_render_rule(name, block)
    return parser


_MARKDOWN = _markdown()
