"""The embedded benchmark's questions as rows of the six benchmarks' real schemas: the same content in other clothes."""

from __future__ import annotations

from datasets import Dataset, Features, Image, Sequence, Value

TEXT, NUMBER = Value("string"), Value("int64")
PICTURE = Image()


def mmstar(samples):
    def row(number, sample):
        options = ", ".join(f"{letter}: {text}" for letter, text in zip("ABCD", sample.options, strict=False))
        return {
            "index": number,
            "question": f"{sample.question}\nOptions: {options}",
            "image": sample.images[0],
            "answer": sample.letter,
            "category": "math",
            "l2_category": "geometry",
            "meta_info": {"source": "MathVista", "split": "testmini", "image_path": f"images/{number}.jpg"},
        }

    features = {
        "index": NUMBER,
        "question": TEXT,
        "image": PICTURE,
        "answer": TEXT,
        "category": TEXT,
        "l2_category": TEXT,
        "meta_info": {"source": TEXT, "split": TEXT, "image_path": TEXT},
    }
    return _dataset(samples, row, features)


def mmbench(samples):
    def row(number, sample):
        options = dict(zip("ABCD", [*sample.options, "nan", "nan"], strict=False))
        return {
            "index": number,
            "question": sample.question,
            "hint": "nan",
            **options,
            "answer": sample.letter,
            "category": "image_emotion",
            "L2-category": "coarse_perception",
            "image": sample.images[0],
            "source": "web",
            "comment": "nan",
            "split": "dev",
        }

    names = ["question", "hint", "A", "B", "C", "D", "answer", "category", "L2-category", "source", "comment", "split"]
    return _dataset(samples, row, {"index": NUMBER, **dict.fromkeys(names, TEXT), "image": PICTURE})


def mmmu(samples):
    def row(number, sample):
        return {
            "id": f"validation_Agriculture_{number + 1}",
            "question": sample.question,
            "options": repr(list(sample.options)),
            "explanation": "",
            **{f"image_{position}": sample.images[0] if position == 1 else None for position in range(1, 8)},
            "img_type": "['Plots and Charts']",
            "answer": sample.letter,
            "topic_difficulty": "Easy",
            "question_type": "multiple-choice",
            "subfield": "Plant Pathology",
        }

    names = ["id", "question", "options", "explanation", "img_type", "answer", "topic_difficulty", "question_type"]
    pictures = [f"image_{position}" for position in range(1, 8)]
    features = {**dict.fromkeys([*names, "subfield"], TEXT), **dict.fromkeys(pictures, PICTURE)}
    return _dataset(samples, row, features)


def scienceqa(samples):
    def row(number, sample):
        return {
            "image": sample.images[0],
            "question": sample.question,
            "choices": list(sample.options),
            "answer": sample.answer,
            **dict.fromkeys(["hint", "lecture", "solution"], ""),
            "task": "closed choice",
            "grade": "grade4",
            "subject": "social science",
            "topic": "geography",
            "category": "Maps",
            "skill": "Read a map",
        }

    names = ["question", "hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution"]
    features = {"image": PICTURE, **dict.fromkeys(names, TEXT), "choices": Sequence(TEXT), "answer": Value("int8")}
    return _dataset(samples, row, features)


def mathvista(samples):
    def row(number, sample):
        return {
            "pid": str(number + 1),
            "question": sample.question,
            "image": f"images/{number + 1}.jpg",
            "decoded_image": sample.images[0],
            "choices": list(sample.options),
            "unit": None,
            "precision": None,
            "answer": sample.options[sample.answer],
            "question_type": "multi_choice",
            "answer_type": "text",
            "metadata": {
                "category": "general-vqa",
                "context": "synthetic scene",
                "grade": "not applicable",
                "img_height": 64,
                "img_width": 64,
                "language": "english",
                "skills": ["arithmetic reasoning"],
                "source": "CLEVR-Math",
                "split": "testmini",
                "task": "math word problem",
            },
            "query": f"Question: {sample.question}",
        }

    names = ["pid", "question", "image", "unit", "answer", "question_type", "answer_type", "query"]
    about = ["category", "context", "grade", "language", "source", "split", "task"]
    features = {
        **dict.fromkeys(names, TEXT),
        "decoded_image": PICTURE,
        "choices": Sequence(TEXT),
        "precision": Value("float64"),
        "metadata": {
            **dict.fromkeys(about, TEXT),
            **dict.fromkeys(["img_height", "img_width"], NUMBER),
            "skills": Sequence(TEXT),
        },
    }
    return _dataset(samples, row, features)


def seedbench(samples):
    def row(number, sample):
        return {
            "question": sample.question,
            **{f"choice_{letter}": text for letter, text in zip("abcd", sample.options, strict=True)},
            "answer": sample.letter,
            "data_id": f"picture-{number}",
            "data_type": "image",
            "question_id": str(number),
            "question_type_id": 8,
            "image": [sample.images[0]],
            "segment": [],
        }

    names = ["question", *(f"choice_{letter}" for letter in "abcd"), "answer", "data_id", "data_type", "question_id"]
    features = {
        **dict.fromkeys(names, TEXT),
        "question_type_id": Value("int16"),
        "image": Sequence(PICTURE),
        "segment": Sequence(NUMBER),
    }
    return _dataset(samples, row, features)


MAKERS = {
    "mmstar": mmstar,
    "mmbench": mmbench,
    "mmmu": mmmu,
    "scienceqa": scienceqa,
    "mathvista": mathvista,
    "seedbench": seedbench,
}
# The paper's task that all of the rows above belong to.
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
    path = folder / f"{name}.parquet"
    MAKERS[name](samples).to_parquet(path)
    return path


def _dataset(samples, row, features):
    rows = [row(number, sample) for number, sample in enumerate(samples)]
    return Dataset.from_list(rows, features=Features(features))
