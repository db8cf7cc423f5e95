"""Model cards: what an original's says is kept, what nobody said is not."""

import models
import pytest
import yaml

from t5x_llm.hf import parity
from t5x_llm.hf.card import CardFacts, front_matter, model_card, table
from t5x_llm.hf.import_ import family_of


def card(**facts):
    report = parity.unproved("Nobody looked.", "float32")
    made = model_card(family_of(models.CONFIG), report, CardFacts("Made up", **facts))
    return made, yaml.safe_load(made.split("---\n")[1])


def test_front_matter_is_what_was_said_and_no_licence_is_made_up():
    made, front = card()
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["t5x_llm"],
    }
    assert "Made up in float32." in made and "Not checked: " in made
    assert "AutoModelForCausalLM.from_pretrained" in made and "model.generate" in made
    said = {"license": "apache-2.0", "language": ["en", "zh"], "base_model": None}
    made, front = card(front=said, sections=(("Data", "None."),))
    assert front["license"] == "apache-2.0" and front["language"] == ["en", "zh"]
    assert "base_model" not in front and made.endswith("\n## Data\n\nNone.\n")


def test_a_conversion_keeps_the_licence_of_its_original(tmp_path):
    (tmp_path / "README.md").write_text(
        "---\nlicense: other\nlicense_name: mine\nlanguage:\n- en\n- zh\ndatasets: [a/b]\n"
        "model-index:\n- name: x\nwidget: 3\n---\n# Model\n",
        encoding="utf-8",
    )
    kept = {"license": "other", "license_name": "mine", "language": ["en", "zh"]}
    assert front_matter(tmp_path) == kept | {"datasets": ["a/b"]}


@pytest.mark.parametrize(
    "text",
    [
        "no front matter",
        "---\n[1, 2\n---\n",
        "---\n- a\n---\n",
        "---\na: &a [x, x]\nlanguage: *a\n---\n",
        "---\nlicense: !!python/object/apply:os.system ['true']\n---\n",
        "---\nlicense: {a: b}\nlanguage: [[x]]\ndatasets: 3\n---\n",
        f"---\nlicense: {'x' * 300}\nlanguage: {['y'] * 200}\n---\n",
        '---\nlicense: "a\\nb"\n---\n',
        "---\n" + "[" * 5000 + "\n---\n",
        "x" * 1_000_001,
    ],
)
def test_cards_that_cannot_be_read_say_nothing(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert front_matter(tmp_path) == {}


def test_a_card_is_no_link_to_elsewhere(tmp_path):
    (tmp_path / "x.md").write_text("---\nlicense: mit\n---\n")
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "README.md").symlink_to(tmp_path / "x.md")
    assert front_matter(tmp_path / "m") == {} and front_matter(tmp_path / "none") == {}


def test_cells_of_tables_stay_in_their_places():
    assert table(["a", "b"], [["x|y\nz", ""]]) == "| a | b |\n| --- | --- |\n| x y z |  |"
