"""Clean text with faults put into it, and how well a step finds them."""

from __future__ import annotations

import contextlib
import html
import json
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from t5x_llm.data.clean.document import Document, Drop, Step

SHIPPED = Path(__file__).parents[3] / "data" / "quickstart"


class Case(NamedTuple):
    """A document, and what a perfect step makes of it: a text, or None if it drops it."""

    document: Document
    wanted: str | None


class Found(NamedTuple):
    """Of what a step touched, how much it should have; of what it should have, how much it got
    right."""

    precision: float
    recall: float
    faults: int
    clean: int

    def __str__(self) -> str:
        return f"precision {self.precision:.3f} recall {self.recall:.3f}"


def shipped(name: str, most: int, size: int = 1500) -> list[str]:
    """Texts of the corpus in data/: of whole lines, of about ``size`` characters."""
    texts = []
    with open(SHIPPED / f"{name}.jsonl", encoding="utf-8") as file:
        for line in file:
            text = json.loads(line)["text"]
            cut = text.find("\n", size)
            texts.append(text[:cut] if cut > 0 else text)
            if len(texts) == most:
                break
    return texts


def measure(step: Step, faults: Sequence[Case], clean: Iterable[str], language: str = "") -> Found:
    """Precision and recall of a step; a repaired text must be right but for blank space."""
    apply = step.open()
    meta = {"language": language} if language else {}
    right = 0
    for case in faults:
        answer = apply(case.document)
        if case.wanted is None:
            right += isinstance(answer, Drop)
        else:
            same = not isinstance(answer, Drop) and _squeezed(answer.text) == _squeezed(case.wanted)
            right += same
    count = touched = 0
    for at, text in enumerate(clean):
        answer = apply(Document(f"clean/x#{at}", text, meta))
        count += 1
        touched += isinstance(answer, Drop) or _squeezed(answer.text) != _squeezed(text)
    assert faults
    return Found(right / max(1, right + touched), right / len(faults), len(faults), count)


def _squeezed(text: str) -> str:
    return "".join(text.split())


def inject(
    texts: Sequence[str], fault: Callable[[str, random.Random], tuple[str, str | None]],
    language: str = "", seed: int = 0,
) -> list[Case]:  # fmt: skip
    """Every text with a fault; those that the fault does not change are left out."""
    cases = []
    meta = {"language": language} if language else {}
    for at, text in enumerate(texts):
        dirty, wanted = fault(text, random.Random(f"{seed} {at}"))
        if dirty != text:
            cases.append(Case(Document(f"dirty/x#{at}", dirty, meta), wanted))
    return cases


# Faults: a text and a source of chance in, the dirty text and the wanted one out.


def curly(text: str) -> str:
    """With typographic quotes and dashes, as the web has it."""
    return text.replace("'", "’").replace('"', "”").replace("--", "—")


def read_as(codec: str, written: str = "utf-8") -> Callable[[str, random.Random], tuple[str, str]]:
    """Lines written in one encoding and read in another, where no byte is lost by that."""

    def fault(text: str, rng: random.Random) -> tuple[str, str]:
        lines = text.split("\n")
        for at, line in enumerate(lines):
            with contextlib.suppress(UnicodeError):
                lines[at] = line.encode(written).decode(codec)
        return "\n".join(lines), text

    return fault


def lossy(text: str, rng: random.Random) -> tuple[str, None]:
    """UTF-8 read as ASCII, or half of it as GBK and written again: what is lost stays lost."""
    raw = text.encode()
    if rng.random() < 0.5:
        return raw.decode("ascii", "replace"), None
    return text[: len(text) // 2] + "锟斤拷" * (len(text) // 6), None


def markup(text: str, rng: random.Random) -> tuple[str, str]:
    """Left-over tags around lines, with a script and a comment."""
    lines = []
    for line in text.split("\n"):
        kind = rng.randrange(5)
        opened = (
            "<p>",
            "<div class='c1 body'>",
            '<a href="http://example.com/?a=1&b=2">',
            "<b>",
            "",
        )
        closed = ("</p>", "</div>", "</a>", "</b>", "<br/>")
        lines.append(f"{opened[kind]}{line}{closed[kind]}")
    lines.insert(rng.randrange(len(lines)), "<script>var a = 1 < 2; document.write('x');</script>")
    lines.insert(rng.randrange(len(lines)), "<!-- begin of content -->")
    return "\n".join(lines), text


def entities(text: str, rng: random.Random) -> tuple[str, str]:
    return html.escape(text, quote=True).replace("、", "&#12289;").replace("’", "&rsquo;"), text


LINES = {
    "en": (
        "Home | About Us | Contact | Privacy Policy",
        "Skip to main content", "Click here to read more",
        "© 2021 Example Media Inc. All rights reserved.", "Share on Facebook", "Read more »",
        "This website uses cookies to improve your experience.", "Leave a comment", "Sign in",
        "Posted in News by admin", "Related articles", "You must be logged in to post a comment.",
        "Powered by WordPress", "Subscribe to our weekly newsletter", "Page 2 of 14", "Back to top",
    ),
    "zh": (
        "上一篇：没有了", "下一篇：关于放假的通知",
        "首页 | 关于我们 | 联系我们 | 网站地图", "点击这里查看全文",
        "版权所有 © 2015 某某网络有限公司", "京ICP备12345678号-1",
        "未经许可不得转载", "转载请注明出处",
        "责任编辑：小王", "来源：新华网", "您的位置：首页 > 新闻 > 正文",
        "相关阅读", "暂无评论", "登录 注册",
        "长按二维码关注我们的公众号", "返回顶部", "本网站使用cookie来改善您的体验",
    ),
}  # fmt: skip


def boilerplate(language: str) -> Callable[[str, random.Random], tuple[str, str]]:
    def fault(text: str, rng: random.Random) -> tuple[str, str]:
        lines = text.split("\n")
        for line in rng.sample(LINES[language], min(3, 1 + len(text) // 150)):
            lines.insert(rng.choice((0, len(lines))), line)
        return "\n".join(lines), text

    return fault


def _luhn(digits: str) -> str:
    total = sum(
        d if at % 2 else (2 * d - 9 if d > 4 else 2 * d)
        for at, d in enumerate(map(int, reversed(digits)))
    )
    return digits + str(-total % 10)


def _id(rng: random.Random) -> str:
    """By the table of weights printed in GB 11643-1999."""
    first = f"{rng.choice((110101, 310104, 440305, 510107))}{rng.randint(1950, 2005)}"
    first += f"{rng.randint(1, 12):02}{rng.randint(1, 28):02}{rng.randint(0, 999):03}"
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return first + "10X98765432"[sum(w * int(c) for w, c in zip(weights, first, strict=True)) % 11]


def _value(kind: str, rng: random.Random) -> str:
    def n(digits: int) -> str:
        return "".join(str(rng.randint(0, 9)) for _ in range(digits))

    if kind == "email":
        name = rng.choice(("john.doe", "zhang_wei", "info", "a.b+c", "user123", "li-na"))
        return f"{name}@{rng.choice(('mail.com', 'corp.example.co.uk', 'qq.com', 'pku.edu.cn'))}"
    if kind == "chinese_id":
        return _id(rng)
    if kind == "card":
        digits = _luhn(rng.choice(("4", "51", "37", "62")) + n(13))[:16]
        digits = _luhn(digits[:15] if digits[0] != "3" else digits[:14])
        return (
            " ".join(digits[i : i + 4] for i in range(0, 16, 4)) if rng.random() < 0.5 else digits
        )
    if kind == "ssn":
        return f"{rng.randint(100, 665)}-{rng.randint(10, 99)}-{rng.randint(1000, 9999)}"
    if kind == "ip":
        v4 = f"8.{rng.randint(1, 9)}.{rng.randint(0, 255)}.{rng.randint(1, 254)}"
        return rng.choice((v4, f"2001:4860:{rng.randint(4096, 9999)}::{rng.randint(1, 9999)}"))
    return rng.choice(
        (
            f"1{rng.choice('3578')}{n(9)}",
            f"+86 1{rng.choice('3578')}{n(1)}-{n(4)}-{n(4)}",
            f"010-6{n(7)}",
            f"({rng.randint(201, 989)}) {rng.randint(200, 999)}-{n(4)}",
            f"{rng.randint(201, 989)}-{rng.randint(200, 999)}-{n(4)}",
            f"+44 20 7{n(3)} {n(4)}",
            f"+1 {rng.randint(201, 989)} {rng.randint(200, 999)} {n(4)}",
        )
    )


def pii(kind: str) -> Callable[[str, random.Random], tuple[str, str]]:
    """Some values of a kind within sentences of their own."""
    around = ("Please write or call: {} today.", "联系方式：{}，谢谢。", "number {}.", "（{}）")

    def fault(text: str, rng: random.Random) -> tuple[str, str]:
        dirty, wanted = text, text
        for _ in range(rng.randint(1, 3)):
            frame = "\n" + rng.choice(around)
            dirty += frame.format(_value(kind, rng))
            wanted += frame.format(f"<{kind}>")
        return dirty, wanted

    return fault


def repeated(text: str, rng: random.Random) -> tuple[str, None]:
    """A line, a sentence or a phrase again and again: as many characters as the text has."""
    kind = rng.randrange(3)
    if kind == 0:
        unit = text[: max(12, len(text) // 8)].replace("\n", " ") + "\n"
    elif kind == 1:
        unit = text[:60].replace("\n", " ") + " "
    else:
        unit = text[:12].replace("\n", " ") + " "
    return text + "\n" + unit * (len(text) // len(unit) + 4), None


def symbols(text: str, rng: random.Random) -> tuple[str, None]:
    """Signs strewn over a third of the text."""
    chars = list(text)
    for at in rng.sample(range(len(chars)), len(chars) // 3):
        chars[at] = rng.choice("#*★◆■=|~^_<>") + " "
    return "".join(chars), None


def keywords(text: str, rng: random.Random) -> tuple[str, None]:
    """Words without sentences, one a line: an index or a menu."""
    words = [w for w in text.replace("，", " ").replace("。", " ").split() if len(w) > 3][:80]
    return "\n".join(w[:6].strip(".,;") for w in words) * 2, None


def digits(text: str, rng: random.Random) -> tuple[str, None]:
    """A table of numbers."""
    rows = (" ".join(str(rng.randint(0, 99999)) for _ in range(8)) for _ in range(40))
    return text[:80] + "\n" + "\n".join(rows), None


FOREIGN = (
    "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de "
    "raison et de conscience et doivent agir les uns envers les "
    "autres dans un esprit de fraternité.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und "
    "Gewissen begabt und sollen einander im Geist der Brüderlichkeit begegnen.",
    "Todos los seres humanos nacen libres e iguales en dignidad y "
    "derechos y, dotados como están de "
    "razón y conciencia, deben comportarse fraternalmente los unos con los otros.",
    "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и "
    "совестью и должны поступать в отношении друг друга в духе братства.",
    "すべての人間は、生まれながらにして自由であり、かつ、"
    "尊厳と権利とについて平等である。人間は、理性と良心とを"
    "授けられており、互いに同胞の精神をもって行動しなければならない。",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 인간은 "
    "천부적으로 이성과 양심을 부여받았으며 "
    "서로 형제애의 정신으로 행동하여야 한다.",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميرًا وعليهم أن يعامل "
    "بعضهم بعضًا بروح الإخاء.",
    "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati di "
    "ragione e di coscienza e devono agire gli uni verso gli altri in spirito di fratellanza.",
)


def foreign_paragraph(text: str, rng: random.Random) -> tuple[str, str]:
    """A paragraph in another language after the first line."""
    first, _, rest = text.partition("\n")
    return "\n".join(filter(None, (first, rng.choice(FOREIGN), rest))), text


SPAM = (
    "Dear friend,\n\nMAKE MONEY FAST and work from home! No "
    "experience necessary, no risk. Act now: "
    "this limited time offer expires tonight. Click here for a free "
    "trial, satisfaction guaranteed.\n"
    "To be removed from our mailing list reply with remove.",
    "Congratulations you have won! You have been selected to receive a free gift. No purchase "
    "necessary, no strings attached. Call now, toll free, while supplies last. Order today!",
    "Cheap viagra, no prescription needed, from our online pharmacy. Lowest prices, free shipping, "
    "money back guarantee. Buy now and save big. Unsubscribe below.",
    "Refinance today! Mortgage rates are the lowest in years, no credit check, no obligation, free "
    "quote. Get out of debt and double your income. Apply now, what are you waiting for?",
    "兼职日结，在家赚钱，日赚三百，月入过万不是梦！加微"
    "信领取任务，零风险，包赚。微信号见下方，欢迎咨询。",
    "澳门赌场上线，真人娱乐，真人荷官，注册送彩金，首存送"
    "百分百。百家乐、六合彩，投注平台信誉第一，立即咨询。",
    "厂家直销，限时抢购，全国包邮，货到付款，假一赔十！"
    "减肥茶不反弹，无效退款，订购热线全天开通，点击购买。",
    "无抵押贷款，低息贷款，当天放款，黑户也可秒批，信用"
    "卡套现，代开发票，加qq详谈，专业代理，欢迎来电。",
)
