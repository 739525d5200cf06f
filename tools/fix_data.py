"""Mend a Kaldi data folder: fix_data.py DIR, or ++data_dir=DIR.

Sorts wav.scp, segments, text, utt2spk and hotwords, and drops bad utterances; each is listed with its reason in
DIR/fix.reasons. The files as they were before go to DIR/.backup. Other files are left alone.
"""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speechllm import cli
from speechllm.errors import Rejects, UserError
from speechllm.processes import WORKERS

log = logging.getLogger("speechllm")


@dataclass
class Options:
    data_dir: str
    """Folder with wav.scp and text, and perhaps segments, utt2spk and hotwords."""
    decode: bool = False
    """Read all samples, not the headers alone; finds NaN and damaged flac and mp3."""
    max_workers: int = WORKERS
    """Processes that read audio; more help where files are far away."""
    allow_pipes: bool = False
    """Run the shell commands that end in | in place of a path, as Kaldi does."""


def main(options: Options) -> None:
    from tqdm import tqdm

    from speechllm.formats import contract

    folder = options.data_dir
    rejects = Rejects(f"{folder}/fix.reasons", max_bad=sys.maxsize)
    good = contract.check(folder, options.max_workers, options.allow_pipes, options.decode, rejects.add)
    keep = {key for key, _, _ in tqdm(good, unit="utt", disable=None)}
    if not keep:
        raise UserError(f"{folder}: no utterance would be left, so nothing was changed; see tools/validate_data.py")
    if rejects.rows:  # without new ones, the reasons of the last fix stay beside its backup
        rejects.close()
    changed = contract.fix(folder, keep)
    done = f"left out {len(rejects.rows)}, reasons in {rejects.path}; as it was: {folder}/.backup"
    log.info("%s: %d utterances; %s", folder, len(keep), done if changed else "nothing to change")


if __name__ == "__main__":
    cli.run(main, Options, __doc__, positional=("data_dir",))
