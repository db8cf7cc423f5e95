"""Writes data/dialogues/: short conversations in English and Chinese about a table of plain facts.

    python scripts/make_dialogues.py [DIRECTORY]

Every line is made of a template and a row of the tables below, so the files need no source but this
one; they are dedicated to the public domain (CC0-1.0). The same files come out every time.

A "fact card" is a question format that a base model does not answer in this form: the entities of
``heldout.jsonl`` are in none of the other files, in either language.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import sys
from collections.abc import Iterator

# English name, Chinese name, symbol, atomic number.
ELEMENTS = """
hydrogen 氢 H 1|helium 氦 He 2|lithium 锂 Li 3|beryllium 铍 Be 4|boron 硼 B 5|carbon 碳 C 6
nitrogen 氮 N 7|oxygen 氧 O 8|fluorine 氟 F 9|neon 氖 Ne 10|sodium 钠 Na 11|magnesium 镁 Mg 12
aluminium 铝 Al 13|silicon 硅 Si 14|phosphorus 磷 P 15|sulfur 硫 S 16|chlorine 氯 Cl 17
argon 氩 Ar 18|potassium 钾 K 19|calcium 钙 Ca 20|scandium 钪 Sc 21|titanium 钛 Ti 22
vanadium 钒 V 23|chromium 铬 Cr 24|manganese 锰 Mn 25|iron 铁 Fe 26|cobalt 钴 Co 27
nickel 镍 Ni 28|copper 铜 Cu 29|zinc 锌 Zn 30|gallium 镓 Ga 31|germanium 锗 Ge 32
arsenic 砷 As 33|selenium 硒 Se 34|bromine 溴 Br 35|krypton 氪 Kr 36|rubidium 铷 Rb 37
strontium 锶 Sr 38|yttrium 钇 Y 39|zirconium 锆 Zr 40|silver 银 Ag 47|cadmium 镉 Cd 48
tin 锡 Sn 50|antimony 锑 Sb 51|iodine 碘 I 53|xenon 氙 Xe 54|caesium 铯 Cs 55|barium 钡 Ba 56
tungsten 钨 W 74|platinum 铂 Pt 78|gold 金 Au 79|mercury 汞 Hg 80|lead 铅 Pb 82|bismuth 铋 Bi 83
radon 氡 Rn 86|radium 镭 Ra 88|uranium 铀 U 92
"""
# Country, capital, continent, in English and in Chinese; _ is a space.
COUNTRIES = """
France Paris Europe 法国 巴黎 欧洲|Germany Berlin Europe 德国 柏林 欧洲
Italy Rome Europe 意大利 罗马 欧洲|Spain Madrid Europe 西班牙 马德里 欧洲
Portugal Lisbon Europe 葡萄牙 里斯本 欧洲|Greece Athens Europe 希腊 雅典 欧洲
Austria Vienna Europe 奥地利 维也纳 欧洲|Poland Warsaw Europe 波兰 华沙 欧洲
Hungary Budapest Europe 匈牙利 布达佩斯 欧洲|Sweden Stockholm Europe 瑞典 斯德哥尔摩 欧洲
Norway Oslo Europe 挪威 奥斯陆 欧洲|Finland Helsinki Europe 芬兰 赫尔辛基 欧洲
Denmark Copenhagen Europe 丹麦 哥本哈根 欧洲|Ireland Dublin Europe 爱尔兰 都柏林 欧洲
Belgium Brussels Europe 比利时 布鲁塞尔 欧洲|Romania Bucharest Europe 罗马尼亚 布加勒斯特 欧洲
Bulgaria Sofia Europe 保加利亚 索非亚 欧洲|Iceland Reykjavik Europe 冰岛 雷克雅未克 欧洲
China Beijing Asia 中国 北京 亚洲|Japan Tokyo Asia 日本 东京 亚洲
India New_Delhi Asia 印度 新德里 亚洲|Thailand Bangkok Asia 泰国 曼谷 亚洲
Vietnam Hanoi Asia 越南 河内 亚洲|Nepal Kathmandu Asia 尼泊尔 加德满都 亚洲
Mongolia Ulaanbaatar Asia 蒙古 乌兰巴托 亚洲|Iran Tehran Asia 伊朗 德黑兰 亚洲
Iraq Baghdad Asia 伊拉克 巴格达 亚洲|Jordan Amman Asia 约旦 安曼 亚洲
Pakistan Islamabad Asia 巴基斯坦 伊斯兰堡 亚洲|Bangladesh Dhaka Asia 孟加拉国 达卡 亚洲
Cambodia Phnom_Penh Asia 柬埔寨 金边 亚洲|Laos Vientiane Asia 老挝 万象 亚洲
Philippines Manila Asia 菲律宾 马尼拉 亚洲|Malaysia Kuala_Lumpur Asia 马来西亚 吉隆坡 亚洲
Egypt Cairo Africa 埃及 开罗 非洲|Kenya Nairobi Africa 肯尼亚 内罗毕 非洲
Ethiopia Addis_Ababa Africa 埃塞俄比亚 亚的斯亚贝巴 非洲|Ghana Accra Africa 加纳 阿克拉 非洲
Morocco Rabat Africa 摩洛哥 拉巴特 非洲|Tunisia Tunis Africa 突尼斯 突尼斯市 非洲
Algeria Algiers Africa 阿尔及利亚 阿尔及尔 非洲|Senegal Dakar Africa 塞内加尔 达喀尔 非洲
Nigeria Abuja Africa 尼日利亚 阿布贾 非洲|Uganda Kampala Africa 乌干达 坎帕拉 非洲
Zambia Lusaka Africa 赞比亚 卢萨卡 非洲|Angola Luanda Africa 安哥拉 罗安达 非洲
Canada Ottawa North_America 加拿大 渥太华 北美洲
Mexico Mexico_City North_America 墨西哥 墨西哥城 北美洲
Cuba Havana North_America 古巴 哈瓦那 北美洲
Panama Panama_City North_America 巴拿马 巴拿马城 北美洲
Brazil Brasilia South_America 巴西 巴西利亚 南美洲
Argentina Buenos_Aires South_America 阿根廷 布宜诺斯艾利斯 南美洲
Chile Santiago South_America 智利 圣地亚哥 南美洲|Peru Lima South_America 秘鲁 利马 南美洲
Colombia Bogota South_America 哥伦比亚 波哥大 南美洲
Ecuador Quito South_America 厄瓜多尔 基多 南美洲
Uruguay Montevideo South_America 乌拉圭 蒙得维的亚 南美洲
Australia Canberra Oceania 澳大利亚 堪培拉 大洋洲|Fiji Suva Oceania 斐济 苏瓦 大洋洲
"""
# Animal, class, legs, in English and in Chinese.
ANIMALS = """
horse mammal 4 马 哺乳动物|cow mammal 4 牛 哺乳动物|dog mammal 4 狗 哺乳动物
cat mammal 4 猫 哺乳动物
lion mammal 4 狮子 哺乳动物|tiger mammal 4 老虎 哺乳动物|rabbit mammal 4 兔子 哺乳动物
mouse mammal 4 老鼠 哺乳动物|camel mammal 4 骆驼 哺乳动物|panda mammal 4 熊猫 哺乳动物
whale mammal 0 鲸鱼 哺乳动物|dolphin mammal 0 海豚 哺乳动物|eagle bird 2 老鹰 鸟类
owl bird 2 猫头鹰 鸟类|duck bird 2 鸭子 鸟类|crane bird 2 鹤 鸟类|sparrow bird 2 麻雀 鸟类
penguin bird 2 企鹅 鸟类|ostrich bird 2 鸵鸟 鸟类|swallow bird 2 燕子 鸟类
frog amphibian 4 青蛙 两栖动物|toad amphibian 4 蟾蜍 两栖动物|newt amphibian 4 蝾螈 两栖动物
lizard reptile 4 蜥蜴 爬行动物|turtle reptile 4 乌龟 爬行动物|snake reptile 0 蛇 爬行动物
crocodile reptile 4 鳄鱼 爬行动物|carp fish 0 鲤鱼 鱼类|salmon fish 0 三文鱼 鱼类
shark fish 0 鲨鱼 鱼类|tuna fish 0 金枪鱼 鱼类|bee insect 6 蜜蜂 昆虫|ant insect 6 蚂蚁 昆虫
beetle insect 6 甲虫 昆虫|butterfly insect 6 蝴蝶 昆虫|mosquito insect 6 蚊子 昆虫
spider arachnid 8 蜘蛛 蛛形动物|scorpion arachnid 8 蝎子 蛛形动物
"""
HELD_OUT = 8  # one entity in so many
Fact = dict[str, str]


def rows(table: str) -> list[list[str]]:
    """Returns the cells of a table."""
    lines = table.strip().replace("\n", "|").split("|")
    return [[cell.replace("_", " ") for cell in line.split()] for line in lines]


def facts() -> Iterator[Fact]:
    """Yields all facts, with the words of both languages."""
    for en, zh, symbol, number in rows(ELEMENTS):
        yield {
            "kind": "chemical element", "类别": "化学元素", "en": en, "zh": zh,
            "a": symbol, "b": number, "甲": symbol, "乙": number,
        }  # fmt: skip
    for en, capital, continent, zh, city, where in rows(COUNTRIES):
        yield {
            "kind": "country", "类别": "国家", "en": en, "zh": zh,
            "a": capital, "b": continent, "甲": city, "乙": where,
        }  # fmt: skip
    for en, group, legs, zh, name in rows(ANIMALS):
        yield {
            "kind": "animal", "类别": "动物", "en": en, "zh": zh,
            "a": group, "b": legs, "甲": name, "乙": legs,
        }  # fmt: skip


# What a and b are called, and how they are asked for and told.
ENGLISH = {
    "chemical element": (
        ("Symbol", "What is the chemical symbol of {en}?", "The symbol of {en} is {a}."),
        ("Number", "And its atomic number?", "The atomic number of {en} is {b}."),
        "Which element has the symbol {a}?", "The element with the symbol {a} is {en}.",
    ),
    "country": (
        ("Capital", "What is the capital of {en}?", "The capital of {en} is {a}."),
        ("Continent", "On which continent is it?", "{en} is a country in {b}."),
        "Which country has the capital {a}?", "{a} is the capital of {en}.",
    ),
    "animal": (
        ("Class", "What kind of animal is a {en}?", "The {en} belongs to this class: {a}."),
        ("Legs", "How many legs does it have?", "The number of legs of a {en} is {b}."),
        "Is a {en} a plant?", "No, a {en} is an animal of this class: {a}.",
    ),
}  # fmt: skip
CHINESE = {
    "化学元素": (
        ("符号", "{zh}的元素符号是什么？", "{zh}的元素符号是{甲}。"),
        ("序数", "它的原子序数呢？", "{zh}的原子序数是{乙}。"),
        "元素符号{甲}代表哪种元素？", "元素符号{甲}代表{zh}。",
    ),
    "国家": (
        ("首都", "{zh}的首都是哪里？", "{zh}的首都是{甲}。"),
        ("大洲", "它在哪个洲？", "{zh}位于{乙}。"),
        "{甲}是哪个国家的首都？", "{甲}是{zh}的首都。",
    ),
    "动物": (
        ("种类", "{zh}是什么动物？", "{zh}属于{甲}。"),
        ("腿数", "它有几条腿？", "{zh}有{乙}条腿。"),
        "{zh}是植物吗？", "不是，{zh}是动物，属于{甲}。",
    ),
}  # fmt: skip


def turns(*texts: str) -> list[dict[str, str]]:
    """Returns messages of user and assistant in turn."""
    return [
        {"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)
    ]


def card(fact: Fact, language: str) -> list[dict[str, str]]:
    """Returns the conversation that asks for the card of a fact."""
    if language == "en":
        (one, _, _), (two, _, _), _, _ = ENGLISH[fact["kind"]]
        answer = f"Name: {fact['en']}\nKind: {fact['kind']}\n{one}: {fact['a']}\n{two}: {fact['b']}"
        return turns(f"Fact card: {fact['en']}", answer)
    (one, _, _), (two, _, _), _, _ = CHINESE[fact["类别"]]
    answer = f"名称：{fact['zh']}\n类别：{fact['类别']}\n{one}：{fact['甲']}\n{two}：{fact['乙']}"
    return turns(f"知识卡片：{fact['zh']}", answer)


def conversations(fact: Fact, language: str) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yields (kind of question, messages) about a fact."""
    yield "card", card(fact, language)
    table = ENGLISH[fact["kind"]] if language == "en" else CHINESE[fact["类别"]]
    (_, first, tell), (_, second, more), back, answer = table
    yield "two", turns(*(text.format(**fact) for text in (first, tell, second, more)))
    yield "back", turns(*(text.format(**fact) for text in (back, answer)))


def held_out(fact: Fact) -> bool:
    """Returns True for an entity that is in heldout.jsonl alone."""
    return hashlib.sha256(fact["en"].encode()).digest()[0] % HELD_OUT == 0


def files() -> dict[str, str]:
    """Returns the content of each file by name."""
    lines: dict[str, list[str]] = {"en.jsonl": [], "zh.jsonl": [], "heldout.jsonl": []}
    for fact in facts():
        for language in ("en", "zh"):
            name = "heldout.jsonl" if held_out(fact) else f"{language}.jsonl"
            for kind, messages in conversations(fact, language):
                row = {"id": f"{language}/{fact['en']}/{kind}", "messages": messages}
                lines[name].append(json.dumps(row, ensure_ascii=False))
    return {name: "\n".join(found) + "\n" for name, found in lines.items()}


def main() -> None:
    """Writes the files."""
    root = pathlib.Path(__file__).parents[1] / "data" / "dialogues"
    directory = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else root
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files().items():
        (directory / name).write_text(content, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
