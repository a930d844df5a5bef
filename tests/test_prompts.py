import json

import pytest
from transformers import AutoTokenizer

import sea_lens as sl
from sea_lens.texts.chat_prompts import ChatPrompt, for_model
from sea_lens.texts.prompts import named_prompts

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)


@pytest.fixture
def tokenizer(model_folders):
    return AutoTokenizer.from_pretrained(model_folders["llama"])


def test_the_named_prompts_can_be_filled_in():
    fields = {name: name.upper() for name in ("question", "context", "query", "ans0", "ans1", "ans2")}
    for template in named_prompts().values():
        template.check(fields)
        assert any(field in template.render(fields) for field in fields.values())


def test_truthfulqa_has_six_examples_and_ends_in_the_question():
    text = named_prompts()["truthfulqa"].render({"question": "Why?"})
    assert text.count("Q: ") == 7
    assert text.endswith("\n\nQ: Why?\nA:")
    assert text.startswith("Q: What is human life expectancy")


def test_a_template_puts_instruction_examples_and_question_together():
    template = sl.PromptTemplate(
        "mine", "Q {question}", "={answer}", ({"question": "1+1", "answer": "2"},), separator=";", instruction="Add."
    )
    template.check({"question"})
    assert template.render({"question": "2+2"}) == "Add.;Q 1+1=2;Q 2+2"
    assert template.complete("4") == "=4"


def test_a_template_is_read_from_a_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"prompt": "{query} ->", "stop": ["\n"]}))
    template = sl.PromptTemplate.of(path)
    assert (template.prompt, template.stop) == ("{query} ->", ("\n",))
    assert sl.PromptTemplate.of("qa") == named_prompts()["qa"]
    assert sl.PromptTemplate.of(template) is template


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object"),
        ('{"completion": " {answer}"}', "expected an object with 'prompt'"),
        ('{"prompt": "{query}", "shots": 3}', "expected an object with 'prompt'"),
        ('{"prompt": 3}', "every value must be a text"),
        ('{"prompt": "{query}", "examples": ["a"]}', "list of objects"),
        ('{"prompt": "{query}", "examples": [{"query": 1}]}', "every value must be a text"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, content, message):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(sl.FileError, match=message):
        sl.PromptTemplate.of(path)


def test_a_template_that_cannot_be_filled_in_is_refused():
    with pytest.raises(sl.InputError, match="must use some of"):
        sl.PromptTemplate("mine", "{context}").check({"question"})
    with pytest.raises(sl.InputError, match="not a format string"):
        sl.PromptTemplate("mine", "{question").check({"question"})
    with pytest.raises(sl.InputError, match=r"example 1 .* lacks \['answer'\]"):
        sl.PromptTemplate("mine", "{question}", examples=({"question": "a"},)).check({"question"})
    with pytest.raises(sl.InputError, match="unknown prompt 'nosuch'"):
        sl.PromptTemplate.of("nosuch")


def test_a_chat_template_takes_the_prompt_as_the_users_turn(tokenizer):
    template = named_prompts()["qa"]
    assert for_model(template, tokenizer) is template
    assert for_model(template, tokenizer, False) is template
    with pytest.raises(sl.InputError, match="has none"):
        for_model(template, tokenizer, True)
    tokenizer.chat_template = CHAT
    chat = for_model(template, tokenizer)
    assert isinstance(chat, ChatPrompt)
    assert chat.render({"question": "Why?"}) == "<user>Q: Why?\nA:</s><bot>"
    assert chat.complete("So.") == "So."
    assert chat.record()["chat_template"] == CHAT
    assert for_model(template, tokenizer, False) is template
    with pytest.raises(sl.InputError, match="unknown chat"):
        for_model(template, tokenizer, "maybe")


def test_a_chat_template_that_fails_is_named(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('no users here') }}"
    with pytest.raises(sl.InputError, match="no users here"):
        for_model(named_prompts()["qa"], tokenizer).render({"question": "Why?"})


def test_a_system_prompt_is_a_turn_of_its_own_and_stands_in_front_where_there_are_no_turns(tokenizer):
    template = sl.PromptTemplate("mine", "Q {question}", instruction="Add.", separator=";", system="Be brief.")
    assert template.render({"question": "2+2"}) == "Be brief.;Add.;Q 2+2"
    assert template.record()["system"] == "Be brief."
    assert "system" not in sl.PromptTemplate("mine", "Q {question}").record()
    tokenizer.chat_template = CHAT
    inside = for_model(template, tokenizer, answers=True)
    assert inside.render({"question": "2+2"}) == "<system>Be brief.</s><user>Add.;Q 2+2</s><bot>"
    assert inside.with_answers({"question": "2+2"}, ["4"]) == (
        "<system>Be brief.</s><user>Add.;Q 2+2</s><assistant>", ["4"]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ("{{ raise_exception('System role not supported') }}", "fails: System role not supported"),
        (
            "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}",
            "what the system says",
        ),
    ],
)
def test_a_chat_template_that_has_no_system_turn_is_refused(tokenizer, chat, message):
    tokenizer.chat_template = chat
    template = sl.PromptTemplate("mine", "Q {question}", system="Be brief.")
    with pytest.raises(sl.InputError, match=message):
        for_model(template, tokenizer, answers=True)
