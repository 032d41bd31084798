"""How sure a label is: votes of samples, beside the probability of the label's first token.

    python -m jobs.bench label_confidence

It labels configs/label-texts with the small model, eight samples of each text, on the real engine.
Then the model reads each trace again, up to the place in the answer where the label stands, and
gives the probability of the first token of each label among those of all labels: what an engine
would return as log-probabilities with the request for the answer.

For the first 1, 2, 4 and 8 samples, votes take the label that most have, and their share; the
probabilities are averaged over the same samples. Right means: as people's label. The calibration
error (ten bins) is best at 0, the area under the ROC curve (AUROC: surer where right) at 1.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs.bench.tables import keep, markdown
from jobs.label import LabelJob, label
from pipeline.config.load import load_as
from pipeline.output.reader import read_traces
from pipeline.prompts.columns import PromptColumns
from pipeline.prompts.messages import row_messages
from pipeline.prompts.render import PromptRenderer
from pipeline.prompts.tokenizer import load_tokenizer, resolve_model

CONFIG, SAMPLES, BINS, RESAMPLED = "configs/label.yaml", 8, 10, 1000
OPENING = '{"label": "'


@dataclass(frozen=True)
class LabeledText:
    """A text with ``gold``, people's label. Of each sample: its label, tokens, probabilities.

    ``labels``: indices of labels, -1 without one. ``probabilities``: of all labels, array of shape
    (samples, labels).
    """

    gold: int
    labels: Sequence[int]
    tokens: Sequence[int]
    probabilities: Any


def by_votes(text: LabeledText, samples: int) -> tuple[int, float]:
    """The label that most of the first ``samples`` have, and their share.

    The earliest of a tie; -1 if none has a label.
    """
    first = text.labels[:samples]
    winner = max(filter(lambda i: i >= 0, first), key=first.count, default=-1)
    return winner, 0.0 if winner < 0 else first.count(winner) / samples


def by_probability(text: LabeledText, samples: int) -> tuple[int, float]:
    """The most probable label by the mean of the first ``samples``, and its probability."""
    mean = text.probabilities[:samples].mean(axis=0)
    return int(mean.argmax()), float(mean.max())


WAYS = {"votes": by_votes, "first token": by_probability}


def calibration_error(sure: Any, right: Any) -> float:
    """The expected calibration error: |share right - mean confidence|, by bins of confidence.

    ``sure``: confidences from 0 to 1, ``right``: bools; arrays of shape (texts,).
    """
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    gaps = [
        (bins == i).mean() * abs(right[bins == i].mean() - sure[bins == i].mean())
        for i in np.unique(bins)
    ]
    return float(sum(gaps))


def area_under_roc(sure: Any, right: Any) -> float:
    """The chance that a right label is surer than a wrong one; NaN if all are right or wrong."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(right, sure)) if 0 < right.sum() < len(right) else float("nan")


def table(texts: Sequence[LabeledText]) -> str:
    """Accuracy, calibration error and AUROC of each way, with 95 % bootstrap intervals."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(texts), (RESAMPLED, len(texts)))
    lines = []
    for samples in (1, 2, 4, SAMPLES):
        tokens = np.mean([sum(text.tokens[:samples]) for text in texts])
        for name, way in WAYS.items():
            said = [way(text, samples) for text in texts]
            sure = np.array([confidence for _, confidence in said])
            right = np.array([i == text.gold for (i, _), text in zip(said, texts, strict=True)])
            figures = [
                _with_interval(score(sure, right), [score(sure[i], right[i]) for i in drawn])
                for score in (calibration_error, area_under_roc)
            ]
            lines.append(
                [f"{name}, n = {samples}", f"{right.mean():.1%}", *figures, f"{tokens:,.0f}"]
            )
    head = ["", "accuracy", "calibration error", "AUROC", "tokens a text"]
    return markdown(head, lines)


def _with_interval(value: float, resampled: Sequence[float]) -> str:
    if np.isnan(value):
        return "-"
    low, high = np.nanquantile(resampled, [0.025, 0.975])
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


class FirstTokens:
    """The small model, which reads traces of ``job`` again; by transformers, on the CPU."""

    def __init__(self, job: LabelJob) -> None:
        from transformers import AutoModelForCausalLM

        run = job.run
        model: Any = AutoModelForCausalLM.from_pretrained(resolve_model(run.model.path))
        self._model = model.eval()
        self._tokenizer = load_tokenizer(run.model.path)
        self._renderer = PromptRenderer(self._tokenizer, None, run.think_format)
        self._columns, self._suffix = PromptColumns(template=run.prompt.template), run.suffix_text
        self._closing = run.think_format.closing
        self._first = [self._ids(name)[0] for name in job.label.labels or ()]
        assert len(set(self._first)) == len(self._first), "two labels begin with the same token"

    def probabilities(self, trace: Mapping[str, Any]) -> Any:
        """The probability of each label after the thinking of ``trace``; shape (labels,)."""
        import torch

        prompt = self._renderer.render(row_messages(trace, self._columns, None, self._suffix))
        ids = [*prompt.token_ids, *self._ids(f"{trace['think']}{self._closing}{OPENING}")]
        with torch.inference_mode():
            scores = self._model(torch.tensor([ids])).logits[0, -1, self._first]
        return scores.float().softmax(0).numpy()

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return found


def labeled_texts(job: LabelJob) -> Iterator[LabeledText]:
    """The texts of the finished ``job`` with people's label, each sample of which has a thought."""
    names, model = list(job.label.labels or ()), FirstTokens(job)
    gold, samples = str(job.label.gold_column), list[dict[str, Any]]()
    for trace in read_traces(job.traces):
        samples.append(trace)
        if len(samples) < SAMPLES:
            continue
        if trace[gold] in names and all(sample["think"] is not None for sample in samples):
            said = [
                json.loads(each["parsed"])["label"] if each["parsed"] else "" for each in samples
            ]
            yield LabeledText(
                names.index(trace[gold]),
                [names.index(name) if name else -1 for name in said],
                [each["think_tokens"] + each["answer_tokens"] for each in samples],
                np.array([model.probabilities(each) for each in samples]),
            )
        samples = []


def main(_: argparse.Namespace, folder: Path) -> None:
    """Label, read again, compare."""
    overrides = (
        f"output.path={folder / 'labels'}", f"sampling.n={SAMPLES}", "sampling.agree=null",
    )  # fmt: skip
    job = load_as(LabelJob, CONFIG, overrides)
    label(job)
    texts = list(labeled_texts(job))
    figures = {"texts": len(texts), "samples": SAMPLES}
    keep(folder, "label_confidence", table(texts), figures)
