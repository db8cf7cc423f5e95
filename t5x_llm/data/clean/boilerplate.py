"""Lines of a page that are about the page, and lines that a source repeats on every page."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from t5x_llm.core import filesystems
from t5x_llm.core.errors import ConfigError, DataError, check_choice, check_number
from t5x_llm.data.clean.document import Answer, Document, Drop
from t5x_llm.data.clean.wrapping import paragraphs

# Each is matched from the start of a line in lower case, its blanks single.
_STARTS = {
    "en": (
        r"(click|tap) (here|to|on)\b",
        r"(skip|jump) to (main |the )?(content|navigation|search)",
        r"(read|show|see|learn|load) more\b[^.]{0,20}(\.{3}|…|»|>>|→)?$",
        r"(home|menu|search|login|log in|sign in|sign up|register|subscribe|share|print|"
        r"back to top|next|previous|prev|next page|previous page|about us|contact us|"
        r"site map|sitemap|faq)$",
        r"((home|about|about us|contact|contact us|blog|news|products|services|login|sign in|"
        r"sitemap|privacy|privacy policy|terms|terms of use|help|faq|search|careers|shop|cart)"
        r"\s*[|>»·•/]\s*){2}",
        r"(copyright )?(©|\(c\)|&copy;) ?(copyright )?\d{4}\b|copyright \d{4}\b",
        r"(share|follow us|like us|tweet|pin it|email this)( this)?( (on|via) )?"
        r"(facebook|twitter|linkedin|pinterest|instagram|whatsapp|email|reddit)?[ ,|]*$",
        r"(share|follow us|find us|like us) (this )?(on|via) ",
        r"(posted|filed|tagged) (by|in|on|under)\b.{0,80}$",
        r"(sign up|subscribe) (for|to) (our|the) .{0,60}$",
        r"(powered by|proudly powered by|designed by|hosted by) .{0,40}$",
        r"(leave a (reply|comment)|post a comment|\d+ comments?|no comments( yet)?)\b.{0,20}$",
        r"you (must|need to) (be logged in|log in|enable javascript)",
        r"(related|recent|popular|you may also like|recommended) "
        r"(posts?|articles?|stories|links):?$",
        r"(advertisement|sponsored( content| links?)?)$",
        r"page \d+ of \d+$",
    ),
    "zh": (
        r"[【\[]?(上一篇|下一篇|上一页|下一页|上一頁|下一頁|上一章|下一章|返回目录|返回目錄|返回首页|"
        r"返回首頁|返回顶部|回到顶部|回到頂部|返回列表|加入书签|首页|首頁|尾页|末页)[】\]]?\s*[:：|]?.{0,40}$",
        r"(阅读|查看|閱讀|了解)(全文|更多|原文|详情|詳情)",
        r"[©(（]?(c|©)[)）]? ?\d{4}",
        r"(责任编辑|责编|编辑|責任編輯|作者|来源|來源|发布时间|发表时间|更新时间|浏览次数|阅读次数|点击数?|"
        r"阅读量|评论数?|分享到|标签|關鍵字|关键词)\s*[:：].{0,40}$",
        r"(登录|登入|注册|註冊|搜索|搜尋|收藏|分享|打印|举报|关注|评论|回复|点赞|顶部|展开|收起|更多)"
        r"([\s|/·>»]+(登录|登入|注册|註冊|搜索|搜尋|收藏|分享|打印|举报|关注|评论|回复|点赞|更多))*$",
        r"((首页|关于我们|联系我们|新闻中心|产品中心|网站地图|隐私政策|用户协议|帮助中心|服务条款|加入我们|"
        r"免责声明|友情链接|招贤纳士|意见反馈|首頁|關於我們|聯絡我們)[\s|/·>»]*){2,}$",
        r"(相关|相關|热门|熱門|推荐|推薦|猜你喜欢|最新)(阅读|文章|推荐|新闻|閱讀|链接|内容|资讯|评论)?[:：]?$",
        r"[你您](当前|现在)?的?位置\s*[:：]|当前位置\s*[:：]",
        r"(暂无|没有|还没有)(评论|相关|内容|数据).{0,10}$|(发表|我要)(评论|回复|留言)",
        r"第?\s*\d+\s*[页頁]\s*[/,，共]?.{0,12}$",
        r"广告$|廣告$",
    ),
}
# (words of which one must be there, what is then searched for)
_ANYWHERE = {
    "en": (
        (
            ("click here", "cookie", "privacy", "rights reserved", "javascript"),
            r"^.{0,60}\bclick here\b[^.,]{0,40}[.!]?$",
            r"\b(this|our) (web ?site|site|page) uses cookies\b|\bwe use cookies\b",
            r"\baccept (all )?cookies\b|\bplease enable (javascript|cookies)\b",
            r"^.{0,60}\b(cookie|privacy) (policy|settings|preferences|notice)\b.{0,40}$",
            r"\ball rights reserved\b",
            r"\bjavascript (is|must be) (disabled|enabled|required)\b",
        ),
    ),
    "zh": (
        (
            (*("点击", "點擊", "单击", "请点", "點选", "版权", "版權", "保留所有", "cookie"),),
            r"(点击|點擊|单击|请点|點选)(这里|此处|這裡|此處|查看|进入|下载|下載|阅读|閱讀|链接|連結|以下).{0,20}$",
            r"版权所有|版權所有|保留所有权利|保留所有權利",
            r"(本网站|本站|我们)使用(了)?\s*cookies?|(同意|接受)(所有)?\s*cookies?",
        ),
        (
            (
                "icp",
                "网安备",
                "未经",
                "未經",
                "转载",
                "轉載",
                "公众号",
                "公眾號",
                "二维码",
                "二維碼",
            ),
            r"icp[备備证證]\d+号?|公网安备|网安备",
            r"(未经|未經)(许可|授权|許可|授權|书面授权|允许).{0,30}(转载|轉載|复制|使用)",
            r"(转载|轉載)(请|請)?(注明|註明|保留)",
            r"(关注|扫描|扫码|长按|微信搜索).{0,12}(公众号|公眾號|二维码|二維碼)",
        ),
    ),
}
_LONGEST = 200  # characters of a line that may be boilerplate


@dataclasses.dataclass(frozen=True)
class Boilerplate:
    """Cuts out lines of navigation, cookie notices, copyright, sharing and the like.

    Only short lines are looked at, so that a sentence of prose that speaks of cookies stays; a
    paragraph that is wrapped at a fixed width is one line.

    Attributes:
      languages: whose phrases are looked for, in every document.
      patterns: further regular expressions, searched for in lower-cased lines.
      max_share: of the characters that may be cut; a document with more is dropped.
    """

    languages: tuple[str, ...] = ("en", "zh")
    patterns: tuple[str, ...] = ()
    max_share: float = 0.5

    def __post_init__(self) -> None:
        for field in ("languages", "patterns"):
            value = getattr(self, field)
            value = (value,) if isinstance(value, str) else tuple(value)
            object.__setattr__(self, field, value)
        for language in self.languages:
            check_choice("Boilerplate.languages", language, _STARTS)
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as e:
                raise ConfigError(
                    "Boilerplate.patterns", pattern, f"a regular expression ({e})"
                ) from e
        check_number("Boilerplate.max_share", self.max_share, low=0, high=1)

    @property
    def name(self) -> str:
        return "boilerplate"

    def open(self) -> Callable[[Document], Answer]:
        starts = [_any(_STARTS[language]) for language in self.languages]
        own = _any(self.patterns)
        kinds = [each for language in self.languages for each in _ANYWHERE[language]]
        anywhere = [(keys, _any(patterns)) for keys, *patterns in kinds]
        # Of a page's lines few have any of the words: they are looked for all at once first.
        likely = _any([re.escape(key) for keys, _ in anywhere for key in keys])

        def unwanted(line: str) -> bool:
            line = _single(line.lower())
            if any(pattern.match(line) for pattern in starts) or own.search(line):
                return True
            return likely.search(line) is not None and any(
                pattern.search(line) is not None
                for keys, pattern in anywhere
                if any(key in line for key in keys)
            )

        return lambda document: _without(document, unwanted, self.max_share)


@dataclasses.dataclass(frozen=True)
class TemplateLines:
    """Cuts out the lines of a list: those that ``find_template_lines`` saw on many pages.

    Attributes:
      file: one line of text a line, UTF-8.
      max_share: of the characters that may be cut; a document with more is dropped.
    """

    file: str
    max_share: float = 0.5

    def __post_init__(self) -> None:
        filesystems.check_readable("TemplateLines.file", self.file)
        if not self.file or not filesystems.exists(self.file):
            raise ConfigError("TemplateLines.file", self.file, "a file with one line a line")
        check_number("TemplateLines.max_share", self.max_share, low=0, high=1)

    @property
    def name(self) -> str:
        return "template"

    def open(self) -> Callable[[Document], Answer]:
        try:
            text = filesystems.read_text(self.file)
        except UnicodeDecodeError as e:
            raise DataError(f"{self.file} is not UTF-8: {e}") from e
        lines = frozenset(filter(None, map(_key, text.splitlines())))
        return lambda document: _without(
            document, lambda line: _key(line) in lines, self.max_share, 1 << 20, _lines
        )


def _any(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{p})" for p in patterns) or r"(?!)")


def find_template_lines(texts: Iterable[str], min_share: float = 0.2, least: int = 5) -> list[str]:
    """Finds lines on at least ``min_share``, and ``least``, of one source's pages; frequent first.

    Digits count as equal, so that dates and page numbers do not hide a template.
    """
    counts: Counter[str] = Counter()
    pages = 0
    for text in texts:
        pages += 1
        counts.update({key for line in text.splitlines() if (key := _key(line))})
    found = [(n, line) for line, n in counts.items() if n >= max(least, min_share * pages)]
    return [line for _, line in sorted(found, key=lambda pair: (-pair[0], pair[1]))]


def _lines(text: str) -> Iterable[tuple[str, str]]:
    """Returns the lines of a text, as they stand and as they are judged."""
    return ((line, line) for line in text.split("\n"))


def _key(line: str) -> str:
    return re.sub(r"\d+", "0", _single(line))


def _single(line: str) -> str:
    """Returns the line with single blanks and none at its ends."""
    return " ".join(line.split())


def _without(
    document: Document,
    unwanted: Callable[[str], bool],
    most: float,
    longest: int = _LONGEST,
    pieces: Callable[[str], Iterable[tuple[str, str]]] = paragraphs,
) -> Answer:
    """Returns the document without the unwanted lines, which are counted in ``meta``.

    ``pieces`` splits a text into lines as they stand and as they are judged.
    """
    kept, cut, removed = [], 0, 0
    for line, paragraph in pieces(document.text):
        stripped = paragraph.strip()
        if stripped and len(stripped) <= longest and unwanted(stripped):
            cut += len(stripped)
            removed += line.count("\n") + 1
        else:
            kept.append(line)
    if not cut:
        return document
    share = cut / max(1, len(document.text.strip()))
    if share > most:
        return Drop("mostly boilerplate", f"{share:.1%}")
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip("\n")
    if not text.strip():
        return Drop("nothing but boilerplate")
    return document.with_text(text).with_meta(lines={"cut": removed})
