"""The report: its figures, and that nothing in a trace can run or fetch anything."""

import time
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import OutputError
from pipeline.insight import trace_statistics
from pipeline.insight.html_report import page, write_page
from pipeline.insight.markup import ELEMENTS, rendered
from pipeline.insight.status import status
from pipeline.insight.trace_statistics import examples
from pipeline.monitor.figures import EngineFigures, EnginePool, Figures
from pipeline.monitor.history import Recorder
from pipeline.output.ledger import Ledger
from pipeline.reasoning.early_answer import ControlGroup
from pipeline.storage import Storage
from tests.outputs import write_output, write_record

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    '"><svg onload=alert(1)>',
    "</pre></details></section><iframe src=javascript:alert(1)>",
    "[x](javascript:alert(1)) ![x](http://example.org/a.png) <http://example.org>",
    "$\\text{<script>alert(1)</script>}$ \\(\\href{javascript:alert(1)}{x}\\)",
    "$$\\class{a\" onmouseover=\"alert(1)}{x} \\style{background:url(http://example.org)}{y}$$",
    "{{ 7 * 7 }} {% raw %}",
    "&lt;script&gt;alert(1)&lt;/script&gt; &#60;b onclick=alert(1)&#62;",
    "```<script>\nalert(1)\n```",
    "\u202egnp.exe \u2066\x00\x1b[31m",
]  # fmt: skip
ALLOWED = ELEMENTS | set(
    "html head meta title style body header h1 h2 h3 p div b span section i table tr th td "
    "details summary pre code select option input svg rect polygon polyline script "
    "strong em ul ol li blockquote hr br thead tbody h4 h5 h6 title".split()
)


class PageElements(HTMLParser):
    """The elements of a page, its number of scripts, and attributes that could load or run code."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.scripts, self.risky = set[str](), 0, list[tuple[str, str | None]]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.scripts += tag == "script"
        self.risky += [
            (name, value)
            for name, value in attrs
            if name.startswith("on") or name in ("src", "href", "srcdoc", "action", "data")
        ]


def test_a_page_replaces_earlier_ones_and_no_other_file(tmp_path: Path) -> None:
    output, target = write_output(tmp_path, [{}]), tmp_path / "index.html"
    for to in (str(target), f"file://{target}"):
        target.unlink(missing_ok=True)
        write_page(output, to)
        write_page(output, to)
        assert "<title>Report: " in target.read_text()
        target.write_text("<!doctype html><title>Mine</title>")
        with pytest.raises(
            OutputError, match=r"index.html exists and is not a report of qwq-batch"
        ):
            write_page(output, to)
        assert "Mine" in target.read_text()
    with pytest.raises(OutputError, match=r"can't write .*: Is a directory"):
        write_page(output, str(tmp_path))


@pytest.mark.parametrize("text", HOSTILE)
def test_rendered_text_has_known_elements_only(text: str) -> None:
    elements = PageElements(str(rendered(text)))
    assert elements.tags <= ALLOWED - {"script", "style", "svg", "input", "select"}
    assert elements.risky == []


def test_page_of_hostile_traces_has_no_script_but_its_own(tmp_path: Path) -> None:
    whole = "\n\n".join(HOSTILE)
    traces = [
        {"prompt": text, "think": text, "answer": text, "error": None} for text in HOSTILE
    ] + [{"prompt": whole, "think": whole, "answer": whole, "state": "failed", "error": whole}]
    url = write_output(tmp_path / "<script>alert(1)</script>", traces)
    elements = PageElements(page(url))
    assert elements.scripts == 1
    assert elements.risky == []
    assert elements.tags <= ALLOWED


@pytest.mark.parametrize(
    ("text", "html"),
    [
        (r"\( x^2 \)", "<msup><mi>x</mi><mn>2</mn></msup>"),
        (r"$$\boxed{\frac{1}{2}}$$", '<menclose notation="box">'),
        (r"\[ a < b \]", "<mo>&lt;</mo>"),
        ("$\\frac{$", '<code class="formula">\\frac{</code>'),
        ("it costs $5 and $6", "it costs $5 and $6"),
        ("**Final**\n\n| a | b |\n|---|---|\n| 1 | 2 |", "<td>2</td>"),
        ("$" + "{" * 5000 + "$", '<code class="formula">{{{{'),
    ],
)  # fmt: skip
def test_answers_are_rendered_with_formulas(text: str, html: str) -> None:
    assert html in rendered(text)


@pytest.mark.parametrize(
    "text",
    [
        "$\\newcommand{\\d}[1]{{#1#1}}" + "\\d{" * 40 + "x" + "}" * 40 + "$",
        "$\\def\\d#1{#1#1}" + "\\d{" * 40 + "x" + "}" * 40 + "$",
        "$$a\n\n" * 4000,
        "\\(" * 10_000,
        "\\[\n\n" * 4000,
        "**a" * 8000,
        "[" * 20_000,
        "> " * 10_000,
        "| a " * 6000 + "\n" + "|---" * 6000 + "|\n" + "| b " * 6000,
        "$" + "{" * 900 + "x" + "}" * 900 + "$",
    ],
)
def test_no_text_takes_the_parser_minutes(text: str) -> None:
    started = time.process_time()
    assert rendered(text[:24_000])
    # Exponential or quadratic time took minutes, or never ended.
    assert time.process_time() - started < 20


def test_figures_of_the_page(tmp_path: Path) -> None:
    traces: list[dict[str, object]]
    traces = [{"think_tokens": 100 * (i + 1), "correct": i % 2 == 0} for i in range(16)]
    traces += [{"state": "rescued", "closed_by": "budget", "think_tokens": 4000}] * 4
    traces += [{"state": "truncated", "closed_by": "loop", "loop_retries": 1, "wasted_tokens": 77}]
    traces += [{"state": "failed", "error": f"prompt_too_long: {n} tokens"} for n in (900, 1200)]
    url = write_output(tmp_path, traces)
    write_record(url, EnginePool(2, 4, 64, 3.0))
    text = page(url)
    for text_or_tag in (
        "<b>23</b><span>rows durable, of 23</span>",
        "87.0%</b><span>finished or rescued",
        "0.13</b><span>GPU-hours",  # 60 s of 2 engines of 4 GPUs
        "0.40</b><span>cost",
        '<td class="n">50.0% of 16</td>',
        "thinking closed: budget used up</td><td class=\"n\">4</td><td>4 rescued",
        "restarted because it looped</td><td class=\"n\">1</td><td>1 truncated",
        "77 tokens",
        "prompt_too_long: N tokens</td><td class=\"n\">2</td>",
        "75% of all slots were in use; less than half of them in the last 0:00:16",
        "KV caches were full 30 times, so that 2.5% of the tokens were computed again",
    ):  # fmt: skip
        assert text_or_tag in text


def test_page_of_a_run_without_finished_parts(tmp_path: Path) -> None:
    text = page(write_output(tmp_path, [{}] * 20, durable=7))
    assert "7</b><span>rows durable, of 20" in text
    assert "2 of 2 parts are not finished" in text


def test_page_of_no_output(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is not the output of a run"):
        page(str(tmp_path))


def test_long_texts_are_cut_in_the_middle(tmp_path: Path) -> None:
    text = page(write_output(tmp_path, [{"think": "x" * 1_000_000, "answer": "y"}]))
    assert "976,000 characters left out" in text
    assert len(text) < 200_000


def test_examples_include_every_state_and_are_reproducible(tmp_path: Path) -> None:
    plain: dict[str, object] = {}
    traces = [plain] * 400 + [{"state": "looped"}] * 3 + [plain] * 97
    store = Storage(write_output(tmp_path, traces))
    parts = sorted(Ledger(store).listing().finished_parts())
    first, again = (list(examples(store, parts)) for _ in range(2))
    assert first == again
    states = [trace["state"] for _, trace in first]
    assert (states.count("looped"), states.count("finished")) == (3, 40)


def test_wrong_answers_are_shown_and_raw_output_only_if_kept(tmp_path: Path) -> None:
    text = page(write_output(tmp_path, [{"correct": False}, {"correct": True}]))
    assert "correct False" in text
    assert "raw output" not in text


def test_part_written_by_a_version_without_a_column_is_counted(tmp_path: Path) -> None:
    url = write_output(tmp_path, [{"wasted_tokens": 7}] * 3)
    path = tmp_path / "out" / "s.00000.parquet"
    table = pq.read_table(path).drop_columns(["wasted_tokens", "duplicate_of"])
    pq.write_table(table.replace_schema_metadata(pq.read_metadata(path).metadata), path)
    assert "<b>3</b><span>traces" in page(url)


def test_rows_are_read_from_their_row_groups(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": list(range(10))}), tmp_path / "a", row_group_size=3)
    wanted = [0, 2, 3, 8, 9]
    assert [
        row["id"] for row in trace_statistics._rows(pq.ParquetFile(tmp_path / "a"), wanted)
    ] == wanted


def control(agrees: bool, **more: object) -> dict[str, object]:
    return {
        "control": True, "think_tokens": 1000, "answer_tokens": 20, "probes": 3, "probe_tokens": 15,
        "early_answer": "1", "early_tokens": 400, "early_agrees": agrees, "parsed": "1",
        "correct": True, "early_correct": agrees, **more,
    }  # fmt: skip


def test_early_answers_are_a_table_and_status_tells_the_same(tmp_path: Path) -> None:
    traces = [control(i < 32) for i in range(40)]
    traces += [{"closed_by": "early_answer", "think_tokens": 400, "wasted_tokens": 20}] * 10
    url = write_output(tmp_path, traces, early={})
    begun = datetime(2026, 1, 1, tzinfo=UTC).isoformat()
    record = Figures(begun, 1.0, 50, 50, tokens={"spent": 1}, control=ControlGroup(50, 50, 50, 0.9))
    Recorder(Storage(url), "1f3c").add(record, True)
    text, lines = page(url), list(status(url).lines())
    for text_or_tag in (
        '<td>traces closed early</td><td class="n">10</td>',
        '<td>tokens of probes</td><td class="n">600, 1.3% of all generated</td>',
        '<td>tokens of probes for early answers</td><td class="n">600</td>',
        '<td class="n">55% (95% interval: 55 to 55%)</td>',
        '<td class="n">32 of 40, 80.0% (95% interval: 65.2 to 89.5%)</td>',
        '<td>early answers that are right</td><td class="n">32 of 40</td>',
        '<td>right answers that closing early makes wrong</td><td class="n">8</td>',
        "<b>LOW AGREEMENT: only 32 of 40",
        "thinking closed: its answer had settled</td><td class=\"n\">10</td>",
        "control True, early_answer 1, parsed 1",
    ):  # fmt: skip
        assert text_or_tag in text
    assert "control           32 of 40 early answers equal the full one, 80.0% (95% interval:" in (
        "\n".join(lines)
    )
    assert sum("LOW AGREEMENT" in line for line in lines) == 1
    assert status(url).to_json()["early_answers"]["agreeing"] == 32


def test_small_control_group_and_runs_without_one(tmp_path: Path) -> None:
    text = page(write_output(tmp_path / "few", [control(True)] * 3, early={}))
    assert "3 rows with early answers to compare with the full one: too few to say" in text
    url = write_output(tmp_path / "none", [{}])
    assert "Early answers" not in page(url)
    assert "early_answers" not in status(url).to_json()


def test_page_of_a_run_with_a_range_of_engines(tmp_path: Path) -> None:
    """Paid for by the time of its engines; slots count while there is an engine."""
    url = write_output(tmp_path, [{}] * 4)
    recorder = Recorder(Storage(url), "1f3c")
    for at, engines in ((0, 0), (30, 1), (60, 3), (90, 2)):
        figures = Figures(
            "2026-01-01T00:00:00+00:00", float(at), at, 90, ready_seconds=0.0,
            tokens={"spent": at}, engines=[EngineFigures(f"e{i}", 8) for i in range(engines)],
            engine_pool=EnginePool(8, 4, 8, 3.0, 1), engine_seconds=2.0 * at,
        )  # fmt: skip
        recorder.add(figures, at == 90)
    text = page(url)
    for words in (
        "0.20</b><span>GPU-hours", "0.60</b><span>cost",
        "100% of all slots were in use; 1 to 3 engines at a time",
    ):  # fmt: skip
        assert words in text
