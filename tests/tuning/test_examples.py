"""Labels stand on answers and the token that ends each, whatever tokenizer, template or processor a model has."""

import copy
import pickle

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import interp
import processors
from families import FAMILIES, family, picture
from interp.models.batches import keys
from interp.toy import lessons
from interp.toy.language import IMAGE_TOKEN
from interp.tuning.conversation_text import ConversationWriter
from interp.tuning.examples import Collator, _columns, training_rows

OURS = ("labels", "row_numbers", "cut_off")


def conversation(*said, image=None, **more):
    turns = [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(said)]
    return {"image": image, "conversations": turns, **more}


def batch_of(vlm, data, **options):
    rows = training_rows(vlm, data)
    return Collator(vlm, **options)([rows[index] for index in range(len(rows))])


def labelled(vlm, batch, row=0):
    """The labels of a row as text, with `|` between parts that are apart."""
    words, before = [], False
    for label in batch["labels"][row].tolist():
        words += ["|"] if label >= 0 and not before and words else []
        words += [vlm.tokenizer.decode([label])] if label >= 0 else []
        before = label >= 0
    return words


@pytest.fixture
def with_template(stage1, monkeypatch):
    def give(template, vlm=stage1):
        monkeypatch.setattr(vlm.processor, "chat_template", template, raising=False)
        return vlm

    return give


# Without a template ------------------------------------------------------------------------------------------------------


def test_the_toy_reads_what_its_own_training_reads(stage1):
    """Its lessons write ids and targets by hand: a question as context, each word of an answer and an end as targets."""
    data = interp.toy.conversations(4, seed=3)
    batch = batch_of(stage1, data)
    rows = []
    for item in data:
        row = lessons._Row()
        row.read(" ".join([IMAGE_TOKEN] * 36))
        for question, answer in zip(item["conversations"][::2], item["conversations"][1::2], strict=True):
            row.read(question["value"].removeprefix("<image> "))
            row.write(answer["value"], weight=1.0)
        rows.append(row)
    lesson = lessons._collate(rows)
    # A lesson's targets stand at the position that predicts them, and it reads no end behind the last answer.
    assert (batch["input_ids"] * (batch["labels"] != stage1.tokenizer.eos_token_id))[:, :-1].equal(
        lesson.input_ids * (batch["labels"][:, :-1] != stage1.tokenizer.eos_token_id)
    )
    targets = lesson.targets.masked_fill(lesson.weights == 0, -100)
    assert batch["labels"][:, 1:].equal(targets)
    assert batch["labels"][:, 0].eq(-100).all()


def test_an_answer_of_several_words_ends_in_an_end_token(stage1):
    batch = batch_of(stage1, [conversation("what is there ?", "a red 3 .", "where ?", "at top")])
    assert labelled(stage1, batch) == ["a", "red", "3", ".", "<eos>", "|", "at", "top", "<eos>"]
    # The model reads the next question where it should end.
    at = batch["labels"][0].tolist().index(stage1.tokenizer.eos_token_id)
    assert stage1.tokenizer.decode(batch["input_ids"][0, at]) == "where"
    assert stage1.tokenizer.decode(batch["input_ids"][0, -1]) == "<eos>"


def test_a_token_of_a_prompt_and_an_answer_is_the_answers(bare):
    """Byte-level tokenizers merge a space with the word behind it; other merges may reach further."""
    core = Tokenizer(
        models.BPE({word: index for index, word in enumerate(["<eos>", "Ġ", ":", "n", "o", ":n"])}, [(":", "n")])
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>")
    tokenizer.chat_template = (
        "{% for m in messages %}o:{{ m['content'] }}{% endfor %}{{ 'o:' if add_generation_prompt }}"
    )
    vlm = interp.load(model=bare.model, processor=tokenizer, device="cpu", check=False)
    batch = batch_of(vlm, [conversation("o", "no", "oo", "o")])
    assert tokenizer.convert_ids_to_tokens(batch["input_ids"][0]) == [
        "o",
        ":",
        "o",
        "o",
        ":n",
        "o",
        "o",
        ":",
        *"ooo",
        ":",
        "o",
        "<eos>",
    ]
    assert labelled(vlm, batch) == [":n", "o", "<eos>", "|", "o", "<eos>"]


def test_an_answer_must_not_end_before_its_end(stage1):
    with pytest.raises(
        interp.InputError, match=r"row 0 \('0'\): its answer 'a <eos> b' has <eos>, the token that ends answers"
    ):
        batch_of(stage1, [conversation("what ?", "a <eos> b")])


def test_a_language_model_alone(bare, stage1):
    data = [
        conversation("a red 3 at top . where is the 3 ?", "top", "what colour ?", "red"),
        conversation("why ?", "no"),
    ]
    mine, others = batch_of(bare, data), batch_of(stage1, data)
    assert all(mine[name].equal(others[name]) for name in mine.keys() | others.keys())


def test_what_the_system_says_comes_first(stage1):
    roles = ("system", "user", "assistant")
    messages = [{"role": r, "content": text} for r, text in zip(roles, ("a red 3 .", "where ?", "top"), strict=True)]
    batch = batch_of(stage1, [{"messages": messages}])
    assert stage1.tokenizer.decode(batch["input_ids"][0]) == "<bos> a red 3 . where ? top <eos>"
    assert labelled(stage1, batch) == ["top", "<eos>"]


def test_images_in_later_turns(stage1, few):
    turns = ("where ?", "top", "what <image> is <image> there ?", "no", "<image> and ?", "yes")
    batch = batch_of(stage1, [conversation(*turns, image=[scene.image for scene in few])])
    assert labelled(stage1, batch) == ["top", "<eos>", "|", "no", "<eos>", "|", "yes", "<eos>"]
    assert len(batch["pixel_values"]) == 3
    ends = (batch["labels"][0] == stage1.tokenizer.eos_token_id).nonzero().flatten()
    # The model reads the next question, or its image, where an answer should end.
    assert stage1.tokenizer.convert_ids_to_tokens(batch["input_ids"][0, ends]) == ["what", "<image>", "<eos>"]


# Every processor ---------------------------------------------------------------------------------------------------------


def rows_for(name):
    image = None if name == "paligemma" else ""
    data = [
        conversation("<image>\nwhat is it ?", "a cat", "really ?", "yes, indeed it is", image=picture()),
        conversation("<image> who ?", "me", image=picture(28, 44, 1)),
    ]
    return data if image is None else [*data, conversation("hello there", "you")]


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_changes_no_loss(name):
    """The loss of a padded batch is the mean over the same tokens of rows alone, in training mode too."""
    vlm = family(name)
    rows, collator = training_rows(vlm, rows_for(name)), Collator(vlm)
    batches = [collator([rows[index] for index in chosen]) for chosen in [range(len(rows)), *zip(range(len(rows)))]]
    vlm.model.train()
    try:
        with torch.no_grad():
            losses = [vlm.model(**{k: v for k, v in batch.items() if k not in OURS[1:]}).loss for batch in batches]
    finally:
        vlm.model.eval()
    counts = [(batch["labels"] >= 0).sum() for batch in batches]
    assert counts[0] == sum(counts[1:])
    mean = sum(loss * count for loss, count in zip(losses[1:], counts[1:], strict=True)) / counts[0]
    torch.testing.assert_close(losses[0], mean, atol=1e-5, rtol=0)
    assert batches[0]["attention_mask"][:, 0].all()


@pytest.mark.parametrize("name", FAMILIES)
def test_labels_are_the_answers(name):
    vlm = family(name)
    batch = batch_of(vlm, rows_for(name))
    ends = batch["labels"] == Collator(vlm).end
    assert "".join(labelled(vlm, batch)).replace("|", "") == "a cat<eos>yes, indeed it is<eos>"
    assert "".join(labelled(vlm, batch, 1)) == "me<eos>"
    assert ends.sum(dim=1).tolist() == [2, 1, 1][: len(ends)]


def test_a_prefix_is_as_the_processor_of_paligemma_makes_it():
    """Its own `suffix=` is for training: another token type, and labels there alone."""
    vlm, image = family("paligemma"), picture()
    batch = batch_of(vlm, [conversation("<image> who is it ?", "a cat", image=image)])
    own = vlm.processor(text=["<image> who is it ?"], images=[image], suffix=["a cat"], return_tensors="pt")
    *inputs, newline = batch["input_ids"][
        0
    ].tolist()  # the processor puts a newline behind the whole text, as behind any
    assert inputs == own["input_ids"][0].tolist()
    assert vlm.tokenizer.decode([newline]) == "\n"
    assert batch["labels"][0, :-1].equal(own["labels"][0])
    assert batch["token_type_ids"][0, :-1].equal(own["token_type_ids"][0])


@pytest.mark.parametrize("name", FAMILIES)
def test_no_token_of_an_answer_sees_those_behind_it(name):
    vlm = family(name)
    inputs = {key: value for key, value in batch_of(vlm, rows_for(name)[:1]).items() if key not in OURS}
    first = int((batch_of(vlm, rows_for(name)[:1])["labels"] >= 0).nonzero()[0, 1]) - 1
    with torch.no_grad():
        logits = vlm.model(**inputs).logits[0, first:]
        last = int((inputs["input_ids"][0] == Collator(vlm).end).nonzero()[-1])
        inputs["input_ids"][0, last] = 9
        changed = vlm.model(**inputs).logits[0, first:]
    differs = (logits - changed).abs().amax(dim=-1) > 1e-5
    assert not differs[: last - first].any()
    assert differs[last - first :].any()


# Chat templates ----------------------------------------------------------------------------------------------------------

PARTS = "{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}BODY<|im_end|>{% endgeneration %}{% else %}BODY<|im_end|>{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
).replace("BODY", PARTS)
# As the template of LLaVA-1.5 is: no token ends a turn.
VICUNA = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for part in m['content'] %}{% if part['type'] == 'image' %}"
    "{{ '<image>\n' }}{% endif %}{% endfor %}{% for part in m['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def with_tokens(*tokens):
    """A tiny LLaVA whose tokenizer has these special tokens."""
    tokenizer = processors.build_tokenizer("<image>", *tokens)
    own = family("llava")
    processor = type(own.processor)(
        processors.clip_images(), tokenizer, patch_size=4, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    model = type(own.model)(copy.deepcopy(own.model.config)).eval()  # the next line changes it
    model.resize_token_embeddings(len(tokenizer))
    return interp.load(model=model, processor=processor, device="cpu", check=False)


@pytest.fixture(scope="module")
def llava():
    return with_tokens("<|im_start|>", "<|im_end|>")


def test_labels_are_those_of_transformers_own_mask(llava, with_template):
    vlm = with_template(CHATML, llava)
    turns = ["<image>what is it ?", "a cat", "really ?", " yes  indeed", "why ?", "no"]
    batch = batch_of(vlm, [conversation(*turns, image=picture())])
    messages = []
    for index, text in enumerate(turns):
        parts = [{"type": "image"}] if "<image>" in text else []
        parts.append({"type": "text", "text": text.removeprefix("<image>")})
        messages.append({"role": ("user", "assistant")[index % 2], "content": parts})
    text = llava.processor.apply_chat_template(messages, tokenize=False)
    inputs = llava.processor(text=[text], images=[picture()], return_tensors="pt")
    assert batch["input_ids"].equal(inputs["input_ids"])
    own = llava.tokenizer.apply_chat_template(
        messages, chat_template=CHATML, return_assistant_tokens_mask=True, return_dict=True
    )
    # The tokenizer does not repeat the image token; what is behind it stands at the same place from the end.
    mask = torch.tensor(own["assistant_masks"]).bool()
    behind = len(mask) - own["input_ids"].index(llava.tokenizer.convert_tokens_to_ids("<image>")) - 1
    assert (batch["labels"][0] >= 0)[-behind:].equal(mask[-behind:])
    assert "".join(labelled(vlm, batch)) == "a cat<|im_end|>| yes  indeed<|im_end|>|no<|im_end|>"


def test_the_format_of_vicuna_has_end_tokens_of_ours(llava, with_template):
    """LLaVA was trained on `ASSISTANT: a cat</s>USER: really? ASSISTANT: yes</s>`; its template leaves the ends out."""
    vlm = with_template(VICUNA, llava)
    batch = batch_of(vlm, [conversation("<image>\nwhat ?", "a cat", "really ?", "yes", image=picture())])
    ids = batch["input_ids"][0]
    text = vlm.tokenizer.decode(ids[ids != vlm.tokenizer.convert_tokens_to_ids("<image>")])
    assert text == "<bos>USER: \nwhat ? ASSISTANT: a cat USER: really ? ASSISTANT: yes<eos>"
    assert "".join(labelled(vlm, batch)) == " a cat<eos>| yes<eos>"


def test_a_prompt_is_what_generation_gets(llava, with_template):
    """Up to the first answer a training row has the tokens of `prepare(chat=True)`."""
    for template in (CHATML, VICUNA):
        vlm = with_template(template, llava)
        batch = batch_of(vlm, [conversation("<image>\nwhat ?", "a cat", image=picture())])
        prompt = vlm.prepare(["<image>\nwhat ?"], [picture()], chat=True).inputs["input_ids"][0]
        assert batch["input_ids"][0, : len(prompt)].equal(prompt)
        assert int((batch["labels"][0] >= 0).nonzero()[0]) == len(prompt)


# How other families write turns: a role of their own, a trim, an error for roles that do not alternate, no end token.
GEMMA = (
    "<bos>{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{% if m['content'] is string %}"
    "{{ m['content'] | trim }}{% else %}{% for part in m['content'] %}{{ '<image>' if part['type'] == 'image' else "
    "part['text'] | trim }}{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}BODY<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
).replace("BODY", PARTS)
MISTRAL = (
    "<bos>{% for m in messages %}{% if m['role'] == 'user' %}[INST]BODY[/INST]{% else %}BODY<eos>{% endif %}{% endfor %}"
).replace("BODY", PARTS)
GLM = (
    "{% for m in messages %}<|{{ m['role'] }}|>\nBODY{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
).replace("BODY", PARTS)
SMOL = (
    "{% for m in messages %}{{ m['role'] | capitalize }}{{ ':' if m['content'][0]['type'] == 'image' else ': ' }}BODY"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
).replace("BODY", PARTS)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (GEMMA, "a cat<end_of_turn>|yes<end_of_turn>"),
        (LLAMA, "a cat<|eot_id|>|yes<|eot_id|>"),
        (MISTRAL, "a cat<eos>|yes<eos>"),
        (GLM, "a cat<eos>|yes<eos>"),
        (SMOL, " a cat<end_of_utterance>| yes<end_of_utterance>"),
    ],
    ids=["gemma", "llama", "mistral", "glm", "smol"],
)
def test_templates_of_other_families(with_template, template, expected):
    tokens = ("<start_of_turn>", "<end_of_turn>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    more = ("[INST]", "[/INST]", "<|user|>", "<|assistant|>", "<end_of_utterance>")
    vlm = with_template(template, with_tokens(*tokens, *more))
    data = [conversation("<image>what ?", "a cat", "really ?", "yes", image=picture())]
    batch = batch_of(vlm, data)
    assert "".join(labelled(vlm, batch)) == expected
    prompt = vlm.prepare(["<image>what ?"], [picture()], chat=True).inputs["input_ids"][0]
    assert batch["input_ids"][0, : len(prompt)].equal(prompt)
    assert int((batch["labels"][0] >= 0).nonzero()[0]) == len(prompt)


TURN = "{% for m in messages %}<|im_start|>{{ m['role'] }}: BODY<|im_end|>{% endfor %}"
TURN += "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("{{ '' + m['content'] }}", " a  cat "),
        ("{{ m['content'] | trim }}", "a  cat"),
        ("{{ m['content'].rstrip() }}", " a  cat"),
        (PARTS, " a  cat "),
    ],
)
def test_templates_that_trim_answers(llava, with_template, body, expected):
    vlm = with_template(TURN.replace("BODY", body), llava)
    batch = batch_of(vlm, [conversation("which <image> ?", " a  cat ", "why ?", " a  cat ", image=picture())])
    assert "".join(labelled(vlm, batch)) == f"{expected}<|im_end|>|{expected}<|im_end|>"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("{{ m['content'] | replace('cat', 'dog') }}", r"leaves out 'a cat', it makes"),
        ("{{ m['content'] | replace('  ', ' ') }}", r"changes an answer: of \['a cat', 'no'\] it makes"),
        ("{{ m['content'] }}{{ m['content'] }}", "does not write each answer once and in order"),
        ("{{ '' + m['content'] | replace('<image>', '') }}", "writes 0 <image> for 1 images"),
        (
            "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate!') }}{% endif %}"
            "{{ raise_exception('never a cat') if 'cat' in m['content'] }}{{ m['content'] }}",
            r"template fails \(TemplateError\): never a cat",
        ),
    ],
)
def test_templates_that_cannot_be_used(llava, with_template, body, message):
    vlm = with_template(TURN.replace("BODY", body), llava)
    answer = "a  cat" if "changes" in message else "a cat"
    with pytest.raises(interp.InputError, match=rf"row 0 \('7'\): the .*{message}") as caught:
        batch_of(vlm, [conversation("<image> what ?", answer, "why ?", "no", image=picture(), id="7")])
    assert "\n" not in str(caught.value)


def test_what_the_template_writes_before_an_answer_by_itself_is_learnt():
    """Some write an empty thought before answers, which is no part of the prompt: the model has to write it."""
    template = (
        "{% for m in messages %}<s>{{ m['role'] }}:{% if m['role'] == 'assistant' and loop.last %}<think></think>{% endif %}"
        "{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant:{% endif %}"
    )

    class Plain:
        chat_template = template

        def apply_chat_template(self, messages, add_generation_prompt, tokenize):
            from transformers.utils.chat_template_utils import render_jinja_template

            made, _ = render_jinja_template(
                [messages], chat_template=template, add_generation_prompt=add_generation_prompt
            )
            return made[0]

    writer = ConversationWriter(Plain(), ("</s>", "<s>"), "</s>", "")
    written = writer.write([("who ?", "me"), ("why ?", "no")])
    parts = [written.text[each.start : each.stop] for each in written.answers]
    assert parts == ["me</s>", "<think></think>no</s>"]


# Length ------------------------------------------------------------------------------------------------------------------


def test_answers_that_are_cut_off_are_counted(stage1):
    data = [conversation("where is the 3 ?", "at top left", id="a"), conversation("why ?", "no", id="b")]
    full = batch_of(stage1, data)
    assert full["cut_off"].tolist() == [False, False]
    assert full["row_numbers"].tolist() == [0, 1]
    for length, left in ((10, 4), (9, 3), (8, 2), (7, 1)):
        batch = batch_of(stage1, data, max_length=length)
        assert batch["input_ids"].shape[1] == length
        assert (batch["labels"] >= 0).sum(dim=1).tolist() == [left, 2]
        assert batch["cut_off"].tolist() == [left < 4, False]


def test_every_input_of_a_token_is_cut():
    """Also masks of each token and tile, as of models with cross-attention; pixels stay whole, whatever their shape."""
    keep = torch.tensor([True, True, False, False])
    for shape, cut in (((3, 4), (3, 2)), ((3, 3, 4), (3, 3, 2)), ((3, 4, 1, 2), (3, 2, 1, 2)), ((3, 2), (3, 2))):
        assert _columns("mask", torch.zeros(shape, dtype=torch.int64), keep, torch.Size((3, 4))).shape == cut
    assert _columns("pixel_values", torch.zeros(3, 4), keep, torch.Size((3, 4))).shape == (3, 4)


def test_rows_of_which_too_little_is_left(stage1):
    scene = interp.toy.scenes(1, seed=0)[0]
    data = [
        conversation("where is the 3 ?", "top", id="long"),
        conversation("<image> where ?", "top", image=scene.image, id="picture"),
    ]
    rows = training_rows(stage1, data)
    with pytest.raises(
        interp.InputError, match=r"row 0 \('long'\) has 8 tokens, of which max_length=6 leaves no token of"
    ):
        Collator(stage1, max_length=6)([rows[0]])
    with pytest.raises(
        interp.InputError, match=r"row 1 \('picture'\) has 41 tokens, of which max_length=20 leaves a part"
    ):
        Collator(stage1, max_length=20)([rows[0], rows[1]])
    with pytest.warns(UserWarning, match="1 rows of the data are left out: the first error was row 1"):
        kept = training_rows(stage1, interp.Data(data, on_error="skip"), Collator(stage1, max_length=20))
    assert [row.id for row in kept] == ["long"]
    assert kept.skipped == 1


def test_rows_longer_than_the_models_positions(bare, stage1):
    tokenizer = stage1.tokenizer
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=8, n_embd=16, n_layer=2, n_head=2)
    table = interp.load(model=GPT2LMHeadModel(config).eval(), processor=tokenizer, device="cpu", check=False)
    with pytest.raises(interp.InputError, match=r"row 0 \('0'\) has 10 tokens, but this model's positions end at 8"):
        batch_of(table, [conversation("where is the 3 ?", "at top left")])
    batch = batch_of(table, [conversation("where is the 3 ?", "at top left")], max_length=8)
    assert batch["cut_off"].tolist() == [True]
    with pytest.warns(
        UserWarning, match="rows are longer than those that the model was trained on: max_length=512 cuts"
    ):
        batch_of(bare, [conversation("3 " * 520, "no")])


# Rows --------------------------------------------------------------------------------------------------------------------


def test_rows_are_read_when_they_are_used(stage1, tmp_path):
    files = [tmp_path / f"{index}.png" for index in range(3)]
    for file in files:
        Image.new("RGB", (48, 48)).save(file)
    data = [conversation("<image> where ?", "top", image=str(file)) for file in files]
    files[1].unlink()
    rows = training_rows(stage1, data)  # nothing is opened
    assert len(rows) == 3
    collator = Collator(stage1)
    assert len(collator([rows[0], rows[2]])["labels"]) == 2
    with pytest.raises(interp.InputError, match=r"row 1 \('1'\): .*1.png' is no file"):
        collator([rows[0], rows[1]])
    with pytest.warns(UserWarning, match="1 rows of the data are left out"):
        rows = training_rows(stage1, interp.Data(data, on_error="skip"))
    assert [row.index for row in rows] == [0, 2]


def test_streams_are_kept(stage1):
    data = interp.toy.conversations(5, seed=1)
    rows = training_rows(stage1, iter(data))
    again = training_rows(stage1, data)
    assert len(rows) == len(again) == 5
    assert all((rows[index].turns, rows[index].id) == (again[index].turns, again[index].id) for index in (3, 0, 4))


def test_a_file_is_read_once(stage1, tmp_path):
    file = tmp_path / "rows.json"
    file.write_text('[{"text": "where ?", "answer": "top"}]')
    rows = training_rows(stage1, file)
    file.unlink()
    assert rows[0].turns == (("where ?", "top"),)
    with pytest.raises(interp.InputTypeError, match="no folder there"):  # another process has to read it
        pickle.loads(pickle.dumps(rows))[0]


def test_workers_make_the_same_batches(stage1, monkeypatch):
    data = interp.toy.conversations(6, seed=1)
    rows, collator = training_rows(stage1, data), Collator(stage1, max_length=60)
    collator([rows[0]])
    pickled = pickle.dumps((rows, collator))
    monkeypatch.setattr(keys, "MAKERS", keys.MakersByKey())
    copies = pickle.loads(pickled)  # as a worker that is no fork gets them
    here, there, elsewhere = (
        list(DataLoader(own, 2, collate_fn=collate, num_workers=workers))
        for own, collate, workers in ((rows, collator, 0), (rows, collator, 2), (*copies, 0))
    )
    assert len(here) == 3
    for first, *others in zip(here, there, elsewhere, strict=True):
        for other in others:
            assert first.keys() == other.keys()
            assert all(first[name].equal(other[name]) for name in first)


def test_a_collator_takes_no_weights_along(stage1):
    assert len(pickle.dumps(Collator(stage1))) < 100_000


def test_data_without_answers(stage1):
    with pytest.raises(interp.InputError, match="chat=True: this model's processor has no chat template"):
        training_rows(stage1, interp.Data([conversation("where ?", "top")], chat=True))
    with pytest.raises(interp.InputError, match="the batch is empty"):
        Collator(stage1)([])
    with pytest.raises(
        interp.InputError, match=r"row 0 \('0'\) has an answer with words that the tokenizer does not know"
    ):
        batch_of(stage1, [conversation("wo ist die 3 ?", "oben links")])


def test_other_values_than_rows(stage1, unchecked):
    with pytest.raises(interp.InputTypeError, match=r"\{'text': 'where \?'\} is not a row of a data set"):
        Collator(stage1)([{"text": "where ?"}])
    with pytest.raises(interp.InputTypeError, match="data is made of batches, which have no answers"):
        training_rows(stage1, stage1.prepare(["where ?"]))
    with pytest.raises(interp.InputError, match=r"row 0 \('0'\): it has no answer: expected a column answer"):
        training_rows(stage1, [(None, "where ?")])
    data = [conversation("where ?", "top"), conversation("where ?")]
    with pytest.raises(interp.InputError, match=r"row 1 \('1'\): its conversation ends with a turn of the human"):
        training_rows(stage1, data)
    with pytest.warns(UserWarning, match="1 rows of the data are left out"):
        assert len(training_rows(stage1, interp.Data(data, on_error="skip"))) == 1
    with pytest.raises(interp.InputError, match="none of 1 rows of the data can be used: the first error was row 0"):
        training_rows(stage1, interp.Data(data[1:], on_error="skip"))
    with pytest.raises(interp.InputError, match=r"row 0 \('0'\): turn 1 of its conversation holds ' '"):
        training_rows(stage1, [conversation("where ?", " ")])
