"""The prompt of a chat template says what the user wrote, whichever form of content the template takes."""

import pytest
from PIL import Image

import interp
import processors
from interp.models.batches.chats import as_chat, has_chat_template
from interp.reports.one_prompt import analyse_prompt

PICTURE = Image.new("RGB", (48, 48))
TURN = "{% for m in messages %}{{ m['role'] }}: BODY{{ '\n' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
PARTS = "{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
TEXTS = "{% for part in m['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
# Templates of language models: they join a string, or print whatever they get.
STRINGS = {
    "joined": "{{ '' + m['content'] }}",
    "printed": "{{ m['content'] }}",
    "trimmed": "{{ m['content'] | trim }}",
    "checked": "{% if m['content'] is not string %}{{ raise_exception('a string') }}{% endif %}{{ m['content'] }}",
}
LISTS = {
    "parts": PARTS,
    "both": "{% if m['content'] is string %}" + "{{ m['content'] }}{% else %}" + PARTS + "{% endif %}",
}


@pytest.fixture
def with_template(toy, monkeypatch):
    """Gives the toy's processor a template."""

    def give(body):
        monkeypatch.setattr(toy.processor, "chat_template", TURN.replace("BODY", body), raising=False)
        return toy

    return give


@pytest.mark.parametrize("body", STRINGS.values(), ids=STRINGS)
def test_a_template_that_takes_a_string_keeps_the_image_where_it_was_written(with_template, body):
    vlm = with_template(body)
    texts = ["which <image> colour is the 3 ?", "<image> where is the 3 ?"]
    batch = vlm.prepare(texts, [PICTURE, PICTURE], chat=True, spans={"digit": "3"})
    assert batch.texts == tuple(f"user: {text}\nassistant:" for text in texts)
    assert batch.positions["image"].sum(dim=1).tolist() == [36, 36]
    assert [batch.tokens[row][int(at)] for row, at in batch.positions["digit"].nonzero()] == ["3", "3"]
    assert vlm.prepare(["where is the 3 ?"], chat=True).texts == ("user: where is the 3 ?\nassistant:",)


@pytest.mark.parametrize("body", LISTS.values(), ids=LISTS)
def test_a_template_that_takes_a_list_gets_one(with_template, body):
    batch = with_template(body).prepare(["which <image> colour ?"], [PICTURE], chat=True)
    assert batch.texts == ("user: which<image>colour ?\nassistant:",)


def test_a_list_without_its_images_is_tried_as_a_string(with_template):
    """A template that also takes lists, and skips images in them."""
    body = "{% if m['content'] is string %}" + "{{ m['content'] }}{% else %}" + TEXTS + "{% endif %}"
    vlm = with_template(body)
    assert vlm.prepare(["<image> which ?"], [PICTURE], chat=True).texts == ("user: <image> which ?\nassistant:",)
    vlm = with_template(TEXTS)
    with pytest.raises(interp.InputError, match="the chat template leaves out the images, it makes 'user: which"):
        vlm.prepare(["<image> which ?"], [PICTURE], chat=True)
    assert vlm.prepare(["which ?"], chat=True).texts == ("user: which ?\nassistant:",)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{{ raise_exception('only\nalternating turns') }}", r"fails \(TemplateError\): only alternating turns; write"),
        ("{{ 1 / 0 }}", r"fails \(ZeroDivisionError\): division by zero"),
        ("{{ nothing.at.all }}", r"fails \(UndefinedError\): 'nothing' is undefined"),
        ("{% if %}", r"fails \(TemplateSyntaxError\): Expected an expression"),
        ("hello", "leaves out 'which', it makes 'user: hello"),
        ("{{ ('' + m['content']) | replace('<image>', '') }}", "changes the number of <image>: it makes 'user: which"),
        ("{{ ('' + m['content'])[:8] }}", r"leaves out '(which|colour)"),
    ],
)
def test_templates_that_cannot_be_used(with_template, body, message):
    with pytest.raises(interp.InputError, match=message) as caught:
        with_template(body).prepare(["which <image> colour ?"], [PICTURE], chat=True)
    assert "\n" not in str(caught.value)


def test_a_template_of_the_tokenizer_alone_is_used(toy, monkeypatch):
    assert not has_chat_template(toy.processor)
    assert not has_chat_template(None)
    monkeypatch.setattr(toy.tokenizer, "chat_template", TURN.replace("BODY", STRINGS["joined"]))
    assert has_chat_template(toy.processor)
    assert as_chat(toy.processor, "where ?") == "user: where ?\nassistant:"


def test_what_the_user_writes_may_look_like_code():
    processor = processors.build("llava")
    text = "what does {'type': 'text'} mean ?"
    assert as_chat(processor, text) == f"<bos>user: {text}assistant:"


def test_the_report_on_one_prompt_takes_a_template_of_strings(with_template):
    analysis = analyse_prompt(with_template(STRINGS["joined"]), PICTURE, "where is the 3 ?")
    assert analysis.lens.tokens == ["<image>"] * 36
