"""Classes of characters, as the inside of a character class of ``re``."""

from __future__ import annotations

# Unicode 16: unified ideographs, extensions, compatibility forms, radicals, iteration mark.
HAN = "\u2e80-\u2fdf\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
KANA = "\u3041-\u3096\u30a1-\u30fa\uff66-\uff9d"
HANGUL = "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af"
# Ends of a clause, and what closes around them.
CHINESE_STOPS = "。！？"
CHINESE_PAUSES = "，、；："
CLOSING = "\"'”’」』）)】》〉]"
