"""Check a Kaldi data folder: validate_data.py DIR, or ++data_dir=DIR. Prints every fault, with id, file and line."""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speechllm import cli
from speechllm.errors import UserError
from speechllm.processes import WORKERS


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

    faults = 0

    def report(key: str, where: str, reason: str) -> None:
        nonlocal faults
        faults += 1
        tqdm.write(f"{where}: {key}: {reason}")

    good = contract.check(options.data_dir, options.max_workers, options.allow_pipes, options.decode, report)
    rows, hours, speakers = 0, 0.0, set()
    for _, seconds, speaker in tqdm(good, unit="utt", disable=None):
        rows, hours = rows + 1, hours + seconds / 3600
        speakers |= {speaker} - {""}
    contract.check_order(options.data_dir, report)
    print(f"{options.data_dir}: {rows} good utterances, {hours:.2f} h, {len(speakers) or 'unknown'} speakers")
    if faults or not rows:
        raise UserError(
            f"{options.data_dir}: {faults} fault(s), {rows} good utterances; mend what is listed above, or let "
            f"tools/fix_data.py {options.data_dir} sort the files and drop the bad utterances"
        )


if __name__ == "__main__":
    cli.run(main, Options, __doc__, positional=("data_dir",))
