"""Untrusted text (Markdown and LaTeX formulas) to HTML in which nothing can run; no I/O.

Only a fixed set of elements comes out: HTML in the text is escaped; links and images stay text.
Formulas become MathML, which browsers draw by themselves. Formulas that can't be read stay text.
"""

import html
import re
from collections.abc import Sequence
from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert_to_element
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.texmath import texmath_plugin

# Longer formulas stay text. So do formulas that define macros, which can expand without end.
MAX_FORMULA_CHARACTERS = 2000
MACRO_DEFINITION = re.compile(
    r"\\(re|provide)?newcommand|\\\w*def\b|\\let\b|\\Declare|\\(re)?newenvironment"
)
# The parser takes quadratic time for some texts, so long or formula-laden ones stay text.
MAX_TEXT_CHARACTERS, MAX_FORMULA_MARKS = 12_000, 300
FORMULA_MARKS = re.compile(r"\$|\\[(\[]")
ELEMENTS = frozenset(
    "math mrow mi mn mo mtext ms mspace mfrac msqrt mroot msub msup msubsup munder mover "
    "munderover mmultiscripts mprescripts mtable mtr mtd mstyle mpadded mphantom menclose".split()
)
ATTRIBUTES = frozenset(
    "display displaystyle scriptlevel mathvariant stretchy fence form separator lspace rspace "
    "minsize maxsize symmetric movablelimits accent accentunder linethickness columnalign "
    "rowspacing columnspacing columnlines rowlines width height depth voffset notation".split()
)
SAFE_VALUE = re.compile(r"[\w .%+-]*")


def rendered(text: str) -> Markup:
    """``text`` as HTML; as preformatted text if it is too long to parse."""
    if len(text) > MAX_TEXT_CHARACTERS or len(FORMULA_MARKS.findall(text)) > MAX_FORMULA_MARKS:
        return Markup("<pre>{}</pre>").format(text)
    return Markup(_MARKDOWN.render(text))  # noqa: S704 (the parser escapes all text)


def formula(latex: str, display: str = "inline") -> Markup:
    """``latex`` as MathML, or unchanged if it can't be read. ``display``: inline or block."""
    if len(latex) <= MAX_FORMULA_CHARACTERS and not MACRO_DEFINITION.search(latex):
        try:
            return _sanitized(convert_to_element(latex, display=display))
        except Exception:  # noqa: S110 (it raises many kinds, RecursionError among them)
            pass
    return Markup('<code class="formula">{}</code>').format(latex)


def _sanitized(element: Element) -> Markup:
    """``element`` serialized with known elements and attributes only, and all text escaped.

    The library's own serializer does not escape the text inside formulas.
    """
    content = escape(html.unescape(element.text or ""))
    for child in element:
        content += _sanitized(child) + escape(html.unescape(child.tail or ""))
    if element.tag not in ELEMENTS:
        return content
    attributes = Markup().join(
        Markup(' {}="{}"').format(name, value)
        for name, value in element.attrib.items()
        if name in ATTRIBUTES and SAFE_VALUE.fullmatch(value)
    )
    return Markup("<{0}{1}>{2}</{0}>").format(element.tag, attributes, content)


def _markdown_parser() -> MarkdownIt:
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

    def inline(_self: Any, tokens: Sequence[Token], index: int, *_: Any) -> str:
        return formula(tokens[index].content)

    def block(_self: Any, tokens: Sequence[Token], index: int, *_: Any) -> str:
        return formula(tokens[index].content, "block")

    parser.add_render_rule("math_inline", inline)
    for name in ("math_block", "math_block_eqno", "math_inline_double"):
        parser.add_render_rule(name, block)
    return parser


_MARKDOWN = _markdown_parser()
