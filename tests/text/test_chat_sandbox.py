"""Templates of strangers: what they raise, and what they cannot do."""

import clocks
import pytest
from chat_cases import talk

from t5x_llm.text.chat import ChatTemplate, TemplateError, render, sandbox
from t5x_llm.text.chat.sandbox import run

TALK = talk("Hi", "Hello!")


def refused(source, **values):
    with pytest.raises(TemplateError) as caught:
        run(source, "own", {"messages": [{"role": "user", "content": "Hi"}], **values})
    assert caught.value.proof == "render"
    return str(caught.value)


def growing(value):
    """A template that makes a text larger again and again."""
    return (
        "{% set n = namespace(t='ab') %}{% for i in range(60) %}"
        f"{{% set n.t = {value} %}}{{% endfor %}}"
    )


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
        "{{ f(60) }}",
        "{% set n = namespace(l=[1]) %}{% for i in range(99999) %}"
        "{% set n.l = n.l + n.l %}{% endfor %}",
        growing("n.t ~ n.t"),
        growing("n.t + n.t"),
        growing("n.t.replace('a', n.t)"),
        growing("n.t | replace('a', n.t)"),
        growing("n.t.join([n.t, n.t, n.t])"),
        growing("[n.t, n.t, n.t] | join(n.t)"),
        "{{ 'a' * 10000000000 }}",
        "{{ 10000000000 * 'a' }}",
        "{{ [1] * 10000000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{% set n = namespace(i=9) %}{% for i in range(60) %}{% set n.i = n.i * n.i %}{% endfor %}",
        "{{ 'a' | batch(3, 'b' * 10000000000) }}",
        "{{ 'a'.center(10000000000) }}",
        "{{ 'a'.ljust(width=10000000000) }}",
        "{{ 'a'.zfill(10000000000) }}",
        "{{ '{:>10000000000}'.format('a') }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ 'a' | indent(10000000000) }}",
        "{{ [[1]] | tojson(indent=10000000000) }}",
        "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
    ],
)
def test_a_template_that_loops_or_grows_is_stopped(source, monkeypatch):
    monkeypatch.setattr(sandbox, "MAX_STEPS", 50_000)
    monkeypatch.setattr(sandbox, "MAX_CHARACTERS", 1_000_000)
    with clocks.no_hang():
        assert "was stopped" in refused(source)


def test_a_template_that_takes_too_long_is_stopped(monkeypatch):
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.05)
    assert "0.05 seconds" in refused("{% for i in range(99999) %}{% for j in range(9) %}"
                                     "{{ '' }}{% endfor %}{% endfor %}")  # fmt: skip


def test_a_template_that_recurses_without_end():
    assert "recurses" in refused("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")


@pytest.mark.parametrize(
    "source",
    [
        "{% include '/etc/passwd' %}",
        "{% import '/etc/passwd' as p %}{{ p }}",
        "{% extends '/etc/passwd' %}",
        "{{ open('/tmp/chat-template-was-here', 'w') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__'].mro() }}",
        "{{ (''|attr('__class__')).mro() }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ raise_exception.__globals__.sandbox }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ dict.__call__.__globals__ }}",
        "{% set n = namespace() %}{% set n.__class__ = 1 %}",
        "{% set n = namespace(__class__=1) %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ messages.clear() }}",
    ],
)
def test_a_template_reaches_no_file_and_no_python(source, tmp_path):
    messages = [{"role": "user", "content": "Hi"}]
    try:
        out = run(source, "own", {"messages": messages})
    except TemplateError as e:
        assert "own" in str(e)
    else:  # an attribute that is not there renders to nothing
        assert out == ""
    assert messages == [{"role": "user", "content": "Hi"}]


def test_errors_say_what_and_where():
    assert "forbids" in refused("{{ ''.__class__() }}")
    assert "line 2" in refused("a\n{% for %}")
    assert "UndefinedError" in refused("{{ a.b.c }}") or "undefined" in refused("{{ a.b.c }}")
    assert "TypeError" in refused("{{ 1 + 'a' }}")
    assert "says: no tools" in refused("{{ raise_exception('no tools') }}")
    with pytest.raises(TemplateError, match="1,000,001 characters"):
        run("a" * 1_000_001, "own", {})


def test_the_turn_at_which_a_template_raises():
    source = (
        "{% for m in messages %}{% if m.content == 'd' %}{{ raise_exception('no d') }}{% endif %}"
    )
    conversation = talk("a", "b", "c", "d", "e", "f")
    with pytest.raises(TemplateError, match=r"no d\. At message 4 of 6 \(assistant; ") as caught:
        render(ChatTemplate("own", source + "{% endfor %}"), conversation, {})
    assert caught.value.turn == 3


def test_large_numbers_of_the_users_are_written():
    values = {"n": 31_415_926_535_897, "messages": []}
    assert run(
        "{{ n }} {{ n | string }} {{ n ~ '' }} {{ n | abs }} {{ n + 1 }}", "own", values
    ) == ("31415926535897 31415926535897 31415926535897 31415926535897 31415926535898")
    assert run("{% macro f(n) %}{{ n | tojson }}{% endmacro %}{{ f(n) }}", "own", values) == (
        "31415926535897"
    )


def test_what_transformers_gives_a_template():
    assert run("{{ {'a': '<é>'} | tojson }}", "own", {}) == '{"a": "<é>"}'
    assert run("{{ [1] | tojson(indent=2) }}", "own", {}) == "[\n  1\n]"
    # The same on every day, for the sake of stores.
    assert run("{{ strftime_now('%d %b %Y') }}", "own", {}) == "26 Jul 2024"
    assert run("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
               "own", {}) == "1"  # fmt: skip
    assert run("{{ dict(a=1).a }}{{ namespace(b=2).b }}", "own", {}) == "12"
    assert run("a\n  {% if true %}\nb\n  {% endif %}\n", "own", {}) == "a\nb\n"
    # The counter in a loop leaves its variables as they were.
    loop = "{{ loop.index }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }} "
    assert run(f"{{% for i in [4, 5] %}}{loop}{{% endfor %}}", "own", {}) == (
        "1TrueFalse2 2FalseTrue24 "
    )
    assert run("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}", "own", {}) == "a1"
    assert run("{% for i in [] %}a{% else %}none{% endfor %}", "own", {}) == "none"
    tree = "{% for i in [[1, [2]]] recursive %}{{ i if i is number else loop(i) }}{% endfor %}"
    assert run(tree, "own", {}) == "12"
