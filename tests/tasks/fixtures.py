"""Rows of the six benchmarks, in the exact schemas of their datasets, and the harness's files of the same."""

from __future__ import annotations

import base64
import csv
import io

from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pictures

TEXT, WHOLE = Value("string"), Value("int64")


def draw(colour="red", size=(6, 4)):
    return Pictures.new("RGB", size, colour)


def table(rows, features):
    """Rows with None where a column is left out."""
    return Dataset.from_list([{name: row.get(name) for name in features} for row in rows], features=Features(features))


# MMStar -------------------------------------------------------------------------------------------------------------

MMSTAR = {
    "index": WHOLE,
    "question": TEXT,
    "image": Image(),
    "answer": TEXT,
    "category": TEXT,
    "l2_category": TEXT,
    "meta_info": {"source": TEXT, "split": TEXT, "image_path": TEXT},
}


def mmstar_row(index, question, answer="A", category="math", l2_category="geometry"):
    return {
        "index": index,
        "question": question,
        "image": draw(),
        "answer": answer,
        "category": category,
        "l2_category": l2_category,
        "meta_info": {"source": "MathVista", "split": "val", "image_path": f"images/{index}.jpg"},
    }


def mmstar():
    return table(
        [
            mmstar_row(0, "What is <image 1>?\nOptions: A: red, B: blue, green, C: a, b and c, D: none", "B"),
            mmstar_row(1, "Hint: Give the letter.\nQuestion: How many?\nChoices:\n(A) 1\n(B) 2\n(C) 3\n(D) 4", "D"),
            mmstar_row(776, "Hint: Give the letter.\nQuestion: How many?\n(A) 5\n(B) 6\n(C) 7\n(D) 8", "C"),
            mmstar_row(855, "Which?\nOptions: A: x, B: y, C: z", "C", "logical reasoning", "diagram reasoning"),
            mmstar_row(1199, "Hint: H.\nQuestion: Which?\nChoices:\n(A) p\n(B) q\n(C) r\n(D)s", "D"),
            mmstar_row(1280, "Which?\nOptions: A: 12, B: Other Answers, C: nan, D: nan", "A", "coarse perception"),
        ],
        MMSTAR,
    )


# MMBench ------------------------------------------------------------------------------------------------------------

MMBENCH = {
    **dict.fromkeys(("question", "hint", "A", "B", "C", "D", "answer", "category", "L2-category"), TEXT),
    **dict.fromkeys(("source", "comment", "split"), TEXT),
    "image": Image(),
}


def mmbench_row(index, options, answer, hint="nan", category="image_emotion"):
    cells = [*options, *["nan"] * (4 - len(options))]
    return {
        "index": index,
        "question": f"What is meant in {int(index) % 1_000_000}?",
        "hint": hint,
        **dict(zip("ABCD", cells, strict=True)),
        "answer": answer,
        "category": category,
        "L2-category": "coarse_perception",
        "source": "s",
        "comment": "nan",
        "split": "dev",
        "image": draw("blue"),
    }


def mmbench(index=int):
    three = ["joy", "fear", "rage"]
    rows = [
        mmbench_row(index(3), three, "B", hint="Look at the face."),
        mmbench_row(index(8), ["yes", "no"], "A", category="physical_property_reasoning"),
        mmbench_row(index(2_000_003), three[2:] + three[:2], "C", hint="Look at the face."),
        mmbench_row(index(1_000_003), three[1:] + three[:1], "A", hint="Look at the face."),
        mmbench_row(index(1_000_008), ["no", "yes"], "B", category="physical_property_reasoning"),
    ]
    return table(rows, {"index": TEXT if index is str else WHOLE, **MMBENCH})


# MMMU ---------------------------------------------------------------------------------------------------------------

NUMBERED = [f"image_{number}" for number in range(1, 8)]
MMMU = {
    **dict.fromkeys(("id", "question", "options", "explanation", "img_type", "answer"), TEXT),
    **dict.fromkeys(("topic_difficulty", "question_type", "subfield"), TEXT),
    **{name: Image() for name in NUMBERED},
}


def mmmu_row(name, question, options, answer, images=1, *, question_type="multiple-choice"):
    return {
        "id": f"validation_{name}",
        "question": question,
        "options": repr(options),
        "explanation": "",
        "img_type": "['Diagrams']",
        "answer": answer,
        "topic_difficulty": "Easy",
        "question_type": question_type,
        "subfield": "S",
        **{NUMBERED[n]: draw((10 * (n + 1), 0, 0)) for n in (range(images) if isinstance(images, int) else images)},
    }


def mmmu():
    nine = [f"option {n}" for n in range(9)]
    return table(
        [
            mmmu_row("Math_19", "In <image 2>, not <image 1>, see <image 2>.", ["a", "b", "it's"], "C", 2),
            mmmu_row("Basic_Medical_Science_10", "Which structure is it?", [], "C", question_type="open"),
            mmmu_row("Chemistry_30", "Which salt?", [], "['MgS', 'Mg S']", question_type="open"),
            mmmu_row("Materials_2", "Which is it? <image 3>", ["<image 1>", "<image 2>"], "B", 3),
            mmmu_row("Electronics_5", "Which current? <image 1>", [], "8.4", question_type="open"),
            mmmu_row("Music_1", "Which?", nine, "I"),
        ],
        MMMU,
    )


# ScienceQA ----------------------------------------------------------------------------------------------------------

SCIENCEQA = {
    "image": Image(),
    "question": TEXT,
    "choices": List(TEXT),
    "answer": Value("int8"),
    **dict.fromkeys(("hint", "task", "grade", "subject", "topic", "category", "skill", "lecture", "solution"), TEXT),
}


def scienceqa_row(category, *, topic="geography", choices=("north", "south", "east"), answer=2, image=True, hint=""):
    return {
        "image": draw("green") if image else None,
        "question": f"Which way, {category}?",
        "choices": list(choices),
        "answer": answer,
        "hint": hint,
        "task": "closed choice",
        "grade": "grade4",
        "subject": "social science",
        "topic": topic,
        "category": category,
        "skill": "Read a map",
        "lecture": "Maps have four sides.",
        "solution": "",
    }


def scienceqa():
    return table(
        [
            scienceqa_row("Maps", image=False),
            scienceqa_row("Maps", hint="North is up."),
            scienceqa_row("Maps", topic="world-history"),
            scienceqa_row("Physical Geography", choices=("a hill", "a lake"), answer=0),
            scienceqa_row("Fossils", topic="earth-science", image=False),
            scienceqa_row("Maps", choices=["1", "2", "3", "4", "5"], answer=4),
        ],
        SCIENCEQA,
    )


# MathVista ----------------------------------------------------------------------------------------------------------

MATHVISTA = {
    **dict.fromkeys(("pid", "question", "image", "unit", "answer", "question_type", "answer_type", "query"), TEXT),
    "decoded_image": Image(),
    "choices": List(TEXT),
    "precision": Value("float64"),
    "metadata": {
        **dict.fromkeys(("category", "context", "grade", "language", "source", "split", "task"), TEXT),
        "img_height": WHOLE,
        "img_width": WHOLE,
        "skills": List(TEXT),
    },
}


def mathvista_row(
    pid, answer, answer_type, choices=None, *, precision=None, unit=None, skills=("arithmetic reasoning",)
):
    return {
        "pid": pid,
        "question": f"How much is {pid}?",
        "image": f"images/{pid}.jpg",
        "decoded_image": draw("grey"),
        "choices": choices,
        "unit": unit,
        "precision": precision,
        "answer": answer,
        "question_type": "multi_choice" if choices else "free_form",
        "answer_type": answer_type,
        "metadata": {
            **{name: name for name in ("category", "context", "grade", "language", "source", "split")},
            "task": "math word problem",
            "img_height": 4,
            "img_width": 6,
            "skills": list(skills),
        },
        "query": f"Hint: ...\nQuestion: How much is {pid}?",
    }


def mathvista():
    return table(
        [
            mathvista_row("1", "1.2", "float", precision=1.0, unit="years"),
            mathvista_row(
                "2", "145°", "text", ["135°", "140°", "145°"], skills=["geometry reasoning", "logical reasoning"]
            ),
            mathvista_row("3", "-2", "integer"),
            mathvista_row("10", "A", "text", ["B", "A", "D", "C"]),
            mathvista_row("225", "[0.1, 5]", "list"),
            mathvista_row("587", "0.6", "text", ["0.5", "0.6", "0.6"]),
        ],
        MATHVISTA,
    )


# SEED-Bench ---------------------------------------------------------------------------------------------------------

SEED = {
    **dict.fromkeys(("question", "choice_a", "choice_b", "choice_c", "choice_d", "answer", "data_id"), TEXT),
    **dict.fromkeys(("data_type", "question_id", "segment"), TEXT),
    "image": List(Image()),
}


def seed_row(question_id, type_id, data_id="7", data_type="image", images=1):
    return {
        "question": f"What of {question_id}?",
        **{f"choice_{letter}": f"{letter} thing" for letter in "abcd"},
        "answer": "C",
        "data_id": data_id,
        "data_type": data_type,
        "question_id": question_id,
        "question_type_id": type_id,
        "segment": None,
        "image": [draw("pink") for _ in range(images)],
    }


def seedbench(number=int):
    rows = [
        seed_row("101", number(8), "7"),
        seed_row("102", number(9), "7"),
        seed_row("v103", number(10), "clip", "video", images=3),
        seed_row("104", number(8), "8"),
        seed_row("105", number(3), "9", images=2),
    ]
    return table(rows, {**SEED, "question_type_id": TEXT if number is str else Value("int16")})


BENCHMARKS = {
    "mmstar": mmstar,
    "mmbench_en": mmbench,
    "mmmu_val": mmmu,
    "scienceqa_val": scienceqa,
    "mathvista_mini": mathvista,
    "seedbench_img": seedbench,
}

# The harness's files ------------------------------------------------------------------------------------------------


def encoded(colour="red", size=(40, 30)):
    content = io.BytesIO()
    draw(colour, size).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def write_tsv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def tsv_row(index, image, answer="B", options=("red", "NA"), **more):
    cells = [*options, *[""] * (4 - len(options))]
    return {
        "index": index,
        "question": 'Which\tone,\n"if any"?',
        "hint": "",
        **dict(zip("ABCD", cells, strict=True)),
        "answer": answer,
        "category": "image_emotion",
        "l2-category": "coarse_perception",
        "image": image,
        **more,
    }
