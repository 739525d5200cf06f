"""Rows for forced alignment from audio with texts, and times where they are known: folders, or Kaldi's tables."""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speechllm import cli
from speechllm.errors import Rejects, UserError
from speechllm.processes import WORKERS


@dataclass
class Options:
    output_file: str
    """JSONL to write. <output_file>.bad lists what is left out, <output_file>.left the files that are of no use."""
    audio_dir: str = ""
    """Folder of wav, flac, mp3, ogg; files of one name, folders below included, belong together."""
    text_dir: str = ""
    """Folder of .txt (the text), and .TextGrid, .ctm, .wrd or .srt (the times; the text too where there is no .txt)."""
    scp_file: str = ""
    """Kaldi wav.scp, in place of the folders."""
    transcript_file: str = ""
    """Kaldi text."""
    segments_file: str = ""
    """Kaldi segments of the recordings in scp_file."""
    ctm_file: str = ""
    """Times of many utterances: `utterance channel start duration word`, seconds from the utterance's start."""
    language: str = ""
    """Of the texts, such as English; Japanese and Korean decide how words are found (extra align)."""
    tier: str = "words"
    """Of TextGrids; phones: TIMIT's .phn in place of .wrd."""
    share: bool = False
    """Where one time is given for several words, share it out by their letters; a guess. Else it is an error."""
    overlap: float = 0.01
    """Seconds that neighbours may overlap: the middle becomes their boundary. Else it is an error."""
    max_workers: int = WORKERS
    """Processes that read audio."""
    max_bad: int = 0
    """Utterances, or files without their counterpart, that may be left out."""
    allow_pipes: bool = False
    """Run the shell commands that end in | in place of a path, as Kaldi does."""


def main(options: Options) -> None:
    from multiprocessing import get_context

    from speechllm.formats import aligner_data as data
    from speechllm.formats import build, contract

    tables = [options.scp_file, options.transcript_file]
    folders = [options.audio_dir, options.text_dir]
    if not (all(tables) and not any(folders)) and not (all(folders) and not any([*tables, options.segments_file])):
        raise UserError("++audio_dir and ++text_dir are needed, or ++scp_file and ++transcript_file")
    rules = data.Rules(options.language, options.tier, options.share, options.overlap)
    rejects = Rejects(f"{options.output_file}.bad", options.max_bad)
    on_fault, known = contract.noting(rejects.add)
    timed = data.read_ctm(options.ctm_file, on_fault) if options.ctm_file else {}
    if options.scp_file:
        files, texts, times, left = [*tables, options.segments_file, options.ctm_file], {}, timed, []
        utterances = contract.join(*tables, options.segments_file, on_fault=on_fault)
    else:
        utterances, texts, times, left = data.find(*folders, rules, timed, on_fault)
        files = [*texts.values(), *{one.path for one in times.values()}]
    data.unused(timed, utterances, known, on_fault)
    data.write_left(f"{options.output_file}.left", left)
    mended = get_context("fork").Value("q", 0)
    make = data.row_maker(texts, times, options.ctm_file, rules, options.allow_pipes, mended)
    same = data.fingerprint(files, [one.where for one in utterances], rules, options.allow_pipes)
    with build.Part(f"{options.output_file}.part", same, rejects) as part:
        build.write_rows(utterances, make, part, options.output_file, options.max_workers)
    logging.info("times of %d utterances; %d boundaries mended", len(times), mended.value)


if __name__ == "__main__":
    cli.run(main, Options, __doc__)
