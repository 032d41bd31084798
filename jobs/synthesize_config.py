"""The configuration of `jobs.synthesize`: a run's, with a section ``synthesize``."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from jobs.accept import AcceptanceRules
from jobs.export import ExportRules
from jobs.hub import dataset_of
from jobs.job import Job
from jobs.judgements import Required
from jobs.preferences import Kind
from jobs.verifiers import load_verifier
from pipeline import RunConfig
from pipeline.answers.formats import parsed_formats
from pipeline.config.section import Section
from pipeline.errors import ConfigError, OutputError
from pipeline.output.ledger import Ledger
from pipeline.prompts.template import columns_of
from pipeline.storage import Storage

PROMPTS = "prompts"
# Settings without which a run that exists may go on reading the seeds themselves.
NEED_PROMPTS = ("expand", "accepted")
KINDS = ((str,), (int,), (float,))


Share = Annotated[float, Field(ge=0, le=1)]


class SynthesizeSection(Section):
    """How to expand the seeds, which samples to accept, and what the card says."""

    expand: dict[str, list[Any]] = Field(
        default_factory=dict,
        description="columns to add: each seed with each combination of their values",
    )
    accepted: Annotated[int, Field(ge=1)] | None = Field(
        None, description="stop when so many samples are accepted; None: use all seeds"
    )
    rescued: bool = Field(
        False,
        description="also accept samples whose thinking was closed for them, or whose answer was "
        "asked for once more",
    )
    min_agreement: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None,
        description="without a right answer: accept an answer with this share of a row's samples",
    )
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="accept samples up to so many tokens: prompt, thinking and answer"
    )
    min_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, description="accept samples from so many tokens: prompt, thinking and answer"
    )
    pass_rate: tuple[Share, Share] | None = Field(
        None,
        description="accept samples of prompts whose share of right samples is within these two: "
        "others are too hard or too easy",
    )
    verifier: str | None = Field(
        None,
        description="a check of your own, `package.module:function`: a sample as a dict goes in, "
        "True or False comes out",
    )
    require: dict[str, Required] = Field(
        default_factory=dict,
        description="columns and the value that a sample must have there: a number at least, text, "
        "true and false exactly",
    )
    judged: str | None = Field(
        None,
        description="Parquet files with the columns of `require`, such as what a judge made of "
        "`traces`; they name samples by `source_row` or `sample_id`, and may come later; None: the "
        "columns are in the traces",
    )
    benchmarks: dict[str, str | None] = Field(
        default_factory=dict,
        description="Parquet or JSON lines with questions that nobody may train on, each with its "
        "column, or a list of files",
    )
    near_duplicate: Annotated[float, Field(gt=0, le=1)] | None = Field(
        0.8, description="similarity (0 to 1) from which a sample is a duplicate; None: no check"
    )
    export: Literal["accepted", "all", "none"] = Field(
        "accepted",
        description="all: every sample with a whole answer, accepted or not, but none that is "
        "contaminated; none: `samples` alone, and an earlier export stays",
    )
    preference: tuple[Kind, ...] = Field(
        ("wrong",),
        description="pairs of samples of a prompt to export, of the first kind that it has; the "
        "rejected one is `wrong`, has a lower `score`, or is `longer` and right too",
    )
    validation: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="share of the seeds that is exported as split `validation`"
    )
    push_to: str | None = Field(
        None,
        description="data set on the Hugging Face hub to which the export is pushed when the job "
        "ends, as `hf://datasets/ORG/NAME`",
    )
    license: str | None = Field(None, description="license of the data, for the card")
    source: str | None = Field(None, description="origin and license of the seeds, for the card")

    @field_validator("push_to")
    @classmethod
    def _is_dataset(cls, push_to: str | None) -> str | None:
        if push_to is not None:
            try:
                dataset_of(push_to)
            except ConfigError as error:
                raise ValueError(error.message) from None
        return push_to

    @field_validator("expand")
    @classmethod
    def _has_values(cls, expand: dict[str, list[Any]]) -> dict[str, list[Any]]:
        for name, values in expand.items():
            if not values:
                raise ValueError(f"{name} has no values, so there would be no prompts")
            if not any(all(type(value) in kind for value in values) for kind in KINDS):
                raise ValueError(
                    f"{name} must be all text, all whole numbers or all decimal numbers (put "
                    "quotes around yes, no, on, off and dates)"
                )
            if len(set(values)) < len(values):
                raise ValueError(f"{name} has a value twice")
        return expand

    @field_validator("benchmarks", mode="before")
    @classmethod
    def _listed(cls, benchmarks: Any) -> Any:
        return dict.fromkeys(benchmarks) if isinstance(benchmarks, list) else benchmarks

    @field_validator("verifier")
    @classmethod
    def _is_function(cls, verifier: str | None) -> str | None:
        if verifier is not None:
            load_verifier(verifier)
        return verifier

    @model_validator(mode="after")
    def _has_sense(self) -> Self:
        for name, bounds in (
            ("pass_rate", self.pass_rate), ("tokens", (self.min_tokens, self.max_tokens)),
        ):  # fmt: skip
            low, high = bounds or (None, None)
            if low is not None and high is not None and low > high:
                raise ValueError(f"the lower bound of {name}, {low}, is above the upper, {high}")
        if self.judged is not None and not self.require:
            raise ValueError("judged needs require: the columns of it that decide")
        return self

    @property
    def rules(self) -> AcceptanceRules:
        """What is accepted."""
        return AcceptanceRules(
            self.rescued, self.min_agreement, self.max_tokens, self.near_duplicate,
            self.min_tokens, self.pass_rate,
        )  # fmt: skip

    @property
    def export_rules(self) -> ExportRules:
        """What is exported."""
        everything = self.export == "all"
        return ExportRules(everything, self.preference, self.validation, tuple(self.expand))


class Synthesis(Job):
    """The job's configuration."""

    synthesize: SynthesizeSection = SynthesizeSection()

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        used = columns_of(self.prompt.template or "")
        if unused := [name for name in self.synthesize.expand if name not in used]:
            raise ValueError(
                f"synthesize.expand has {', '.join(unused)}, which prompt.template does not use, "
                "so all its values would give the same prompt"
            )
        is_parsed = self.answer.load_format().is_parsed
        if self.synthesize.min_agreement is not None and not is_parsed:
            raise ValueError(f"synthesize.min_agreement needs an answer.format: {parsed_formats()}")
        if self.synthesize.pass_rate is not None:
            self._check_pass_rate()
        return self

    def _check_pass_rate(self) -> None:
        if self.answer.reference_column is None and self.synthesize.verifier is None:
            raise ValueError(
                "synthesize.pass_rate needs right answers: set answer.reference_column or "
                "synthesize.verifier"
            )
        if self.sampling.n < 2:
            raise ValueError("synthesize.pass_rate needs several samples: raise sampling.n")
        if self.sampling.agree is not None:
            raise ValueError(
                "synthesize.pass_rate would be biased by sampling.agree, which draws samples until "
                "some agree; leave one of them out"
            )

    @property
    def makes_prompts(self) -> bool:
        """Whether the run reads prompt shards made from the seeds, instead of the seeds.

        A run that exists goes on with what it has, if the settings leave a choice; else raises
        `OutputError`.
        """
        needing = [name for name in NEED_PROMPTS if getattr(self.synthesize, name)]
        manifest = Ledger(Storage(self.traces)).manifest()
        if manifest is None:
            return bool(needing or self.synthesize.benchmarks)
        folder = manifest["settings"]["input.path"].rpartition("/")[2]
        are_made = folder == PROMPTS and Storage(self.below(PROMPTS)).is_folder()
        if needing and not are_made:
            raise OutputError(
                f"synthesize.{needing[0]} can't be added: the run in {self.traces} reads the seeds "
                "themselves, all of them; leave it out, or choose another output.path"
            )
        return are_made

    @property
    def run(self) -> RunConfig:
        """The run that generates the samples."""
        if not self.makes_prompts:
            return self.as_run()
        # What says how the seeds are read, and which, does not hold for the prompts once more.
        taken = dict.fromkeys(("files", "subset", "split", "columns", "where"))
        return self.as_run(input={"path": self.below(PROMPTS), "types": {}, **taken})
