"""The embedded benchmark's questions as rows of the six benchmarks' real schemas: the same content in other clothes."""

from __future__ import annotations

from datasets import Value

from tests.tasks import fixtures


def mmstar(number, sample):
    options = ", ".join(f"{letter}: {text}" for letter, text in zip("ABCD", sample.options, strict=False))
    row = fixtures.mmstar_row(number, f"{sample.question}\nOptions: {options}", sample.letter)
    return {**row, "image": sample.images[0]}


def mmbench(number, sample):
    row = fixtures.mmbench_row(number, sample.options, sample.letter)
    return {**row, "question": sample.question, "image": sample.images[0]}


def mmmu(number, sample):
    row = fixtures.mmmu_row(f"Agriculture_{number + 1}", sample.question, list(sample.options), sample.letter)
    return {**row, "image_1": sample.images[0]}


def scienceqa(number, sample):
    row = fixtures.scienceqa_row("Maps", choices=sample.options, answer=sample.answer)
    return {**row, "question": sample.question, "image": sample.images[0]}


def mathvista(number, sample):
    right = sample.options[sample.answer]
    row = fixtures.mathvista_row(str(number + 1), right, "text", list(sample.options))
    return {**row, "question": sample.question, "decoded_image": sample.images[0]}


def seedbench(number, sample):
    row = fixtures.seed_row(str(number), 8, f"picture {number}")
    options = {f"choice_{letter}": text for letter, text in zip("abcd", sample.options, strict=True)}
    return {**row, **options, "question": sample.question, "answer": sample.letter, "image": [sample.images[0]]}


MAKERS = {
    "mmstar": (mmstar, fixtures.MMSTAR),
    "mmbench": (mmbench, {"index": Value("int64"), **fixtures.MMBENCH}),
    "mmmu": (mmmu, fixtures.MMMU),
    "scienceqa": (scienceqa, fixtures.SCIENCEQA),
    "mathvista": (mathvista, fixtures.MATHVISTA),
    "seedbench": (seedbench, {**fixtures.SEED, "question_type_id": Value("int16")}),
}
# The paper's task, or another, that all of the rows above belong to.
TASKS = {
    "mmstar": "math",
    "mmbench": "image_emotion",
    "mmmu": "tech_engineering",
    "scienceqa": "maps",
    "mathvista": "task=math word problem",
    "seedbench": "visual_reasoning",
}


def write(name, samples, folder):
    """A local file of the benchmark `name` with these questions."""
    row, features = MAKERS[name]
    path = folder / f"{name}.parquet"
    fixtures.table([row(number, sample) for number, sample in enumerate(samples)], features).to_parquet(path)
    return path
