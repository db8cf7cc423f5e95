"""List of all steps of cleaning, for gin: ``Clean.steps = (@FixEncoding(), ...)``."""

from t5x_llm.data.clean.boilerplate import Boilerplate, TemplateLines
from t5x_llm.data.clean.chinese import (
    ChineseC4,
    ChineseFineWeb,
    ChineseQuality,
    ChineseRepetition,
)
from t5x_llm.data.clean.classifier import Label, QualityClassifier
from t5x_llm.data.clean.encoding import FixEncoding
from t5x_llm.data.clean.language import Language
from t5x_llm.data.clean.markup import StripMarkup
from t5x_llm.data.clean.normalise import Normalise
from t5x_llm.data.clean.perplexity import Perplexity
from t5x_llm.data.clean.pii import MaskPii
from t5x_llm.data.clean.quality import C4Quality, FineWebQuality, GopherQuality, GopherRepetition
from t5x_llm.data.clean.words import PhraseList

# In the order in which they are best applied: repair, cut, then judge what is left.
STEPS = (
    *(FixEncoding, StripMarkup, Normalise, Language, Boilerplate, TemplateLines),
    *(C4Quality, ChineseC4, GopherQuality, ChineseQuality, GopherRepetition, ChineseRepetition),
    *(FineWebQuality, ChineseFineWeb, PhraseList, Perplexity, QualityClassifier, Label, MaskPii),
)
