"""The commands that run a job."""

import click

from pipeline.cli.arguments import config_file, load_run, overrides, retried


@click.command()
@config_file
@overrides
@retried
def label(config: str, overrides: tuple[str, ...], states: list[str]) -> int:
    """Label texts by a guideline, with a confidence for each."""
    from jobs.label import LabelJob, label
    from pipeline.config.load import load_as

    return label(load_as(LabelJob, config, overrides), states)


@click.command()
@config_file
@overrides
@retried
def judge(config: str, overrides: tuple[str, ...], states: list[str]) -> int:
    """Judge answers by a rubric: verdicts, scores, or which of two is better."""
    from jobs.judge import JudgeJob, judge
    from pipeline.config.load import load_as

    return judge(load_as(JudgeJob, config, overrides), states)


@click.command()
@config_file
@overrides
@retried
def synthesize(config: str, overrides: tuple[str, ...], states: list[str]) -> int:
    """Make training data from seeds: prompts, verified samples, chats."""
    from jobs.synthesize import synthesize
    from jobs.synthesize_config import Synthesis
    from pipeline.config.load import load_as

    return synthesize(load_as(Synthesis, config, overrides), states)


@click.command()
@config_file
@overrides
def stages(config: str, overrides: tuple[str, ...]) -> int:
    """Run several stages in order, each from the results of an earlier one."""
    from jobs.stages import load_stages

    return load_stages(config, overrides).run()


@click.command()
@config_file
@overrides
def nightly(config: str, overrides: tuple[str, ...]) -> int:
    """Run new rows within limits, and leave a report. For schedulers."""
    from jobs.nightly import nightly

    return nightly(load_run(config, overrides))


@click.command()
@config_file
@overrides
@retried
def openai_batch(config: str, overrides: tuple[str, ...], states: list[str]) -> int:
    """Run a file made for the OpenAI Batch API, and answer in its format."""
    from jobs.job import Job
    from jobs.openai_batch import openai_batch
    from pipeline.config.load import load_as

    return openai_batch(load_as(Job, config, overrides), states)
