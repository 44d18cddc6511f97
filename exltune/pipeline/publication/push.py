"""`exltune push`: a branch for every quant, and main as the page that leads to them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exltune.errors import DataError, UsageError
from exltune.pipeline.common.reporter import Reporter, Silent
from exltune.pipeline.publication.card import CARD
from exltune.pipeline.publication.public_files import FOLDERS
from exltune.pipeline.publication.published import PublishedQuant, check_branches, find_published
from exltune.publish.card_metadata import check_repo_id
from exltune.publish.card_render import render_card
from exltune.publish.hub import MAIN, Repository, read_token
from exltune.publish.hub_files import README, branch_files
from exltune.schema.card import Card
from exltune.schema.push import PushAction, PushedBranch, PushResult
from exltune.store.names import RECIPE
from exltune.store.records import read_record

_AGAIN = "Make the card again with exltune card"


@dataclass(frozen=True)
class PushOptions:
    """The user's options. card: the README, None for the one in the first output. branches: these quants alone, all
    where empty. endpoint: None for HF_ENDPOINT, or the Hub itself.
    """

    repo_id: str
    card: Path | None = None
    branches: tuple[str, ...] = ()
    private: bool = False
    dry_run: bool = False
    token_file: Path | None = None
    endpoint: str | None = None


@dataclass(frozen=True)
class _Branch:
    """Files of a branch by their path there, and the files left behind, with the reason."""

    name: str
    files: Mapping[str, Path]
    left: Mapping[str, str]


def push(outs: Sequence[Path], options: PushOptions, *, reporter: Reporter | None = None) -> PushResult:
    """Bring quants and their card to the Hub; the same call again sends the missing files.

    Quants come first and main last: its page never leads to a branch that is not there.
    Raises: UsageError, DataError for a card that is missing or does not fit, HubError, and all that opening the
    directories raises.
    """
    reporter = reporter or Silent()
    check_repo_id(options.repo_id, "REPO_ID")
    quants = _chosen(find_published(outs).quants, options.branches)
    check_branches(quants)
    readme = options.card or outs[0] / README
    page = _page(readme, options.repo_id, [quant.branch for quant in quants])
    branches = [*(_branch(quant, page) for quant in quants), _Branch(MAIN, page, {})]
    actions = tuple(_actions(branches))
    total = sum(action.size_bytes for action in actions)
    if options.dry_run:
        return PushResult(
            repo_id=options.repo_id, url=None, dry_run=True, actions=actions, size_bytes=total, branches=()
        )
    repository = Repository(options.repo_id, read_token(options.token_file), options.endpoint)
    repository.check_token()
    url = repository.create(private=options.private)
    done: list[PushedBranch] = []
    for branch in branches:
        # No bar of ours: huggingface_hub draws one for every file.
        reporter.remark(f"Pushing {branch.name}, {len(branch.files)} files")
        done.append(_send(repository, branch))
    return PushResult(
        repo_id=options.repo_id, url=url, dry_run=False, actions=actions, size_bytes=total, branches=tuple(done)
    )


def _send(repository: Repository, branch: _Branch) -> PushedBranch:
    if branch.name != MAIN:
        repository.create_branch(branch.name)
    what = "Card, recipes and measurements" if branch.name == MAIN else f"EXL3 quant, {branch.name}"
    return repository.commit(branch.name, branch.files, what)


def _chosen(quants: Sequence[PublishedQuant], branches: Sequence[str]) -> list[PublishedQuant]:
    if not branches:
        return list(quants)
    known = {quant.branch for quant in quants}
    for name in branches:
        if name not in known:
            raise UsageError(f"`branch` {name}: there is no such quant", fix=f"Known: {', '.join(sorted(known))}")
    return [quant for quant in quants if quant.branch in branches]


def _branch(quant: PublishedQuant, page: Mapping[str, Path]) -> _Branch:
    """A quant's own files with the card, its pictures and the recipe as published: the base model's README describes
    another model.
    """
    taken, left = branch_files(quant.path)
    recipe = page.get(f"{FOLDERS[RECIPE]}/{quant.branch}.yaml")
    if recipe is not None:
        taken |= {RECIPE: recipe}
        left.pop(RECIPE, None)
    shown = {name: path for name, path in page.items() if name == README or path.suffix == ".png"}
    return _Branch(quant.branch, taken | shown, left)


def _page(readme: Path, repo_id: str, branches: Sequence[str]) -> dict[str, Path]:
    """The card and its sources, by path in the repository, checked against the card."""
    card_file = readme.with_name(CARD)
    for path in (readme, card_file):
        if not path.is_file():
            raise DataError(
                "there is no card", where=str(path), fix=f"Make it with exltune card (`out` {readme}), or give `card`"
            )
    card = read_record(card_file, Card)
    if card.repo_id != repo_id:
        raise DataError(
            f"the card's commands name {card.repo_id}, not {repo_id}",
            where=str(card_file),
            fix=f"{_AGAIN} for {repo_id} and with `force`",
        )
    for branch in branches:
        if branch not in card.branches:
            raise DataError(f"the card knows no {branch}", where=str(card_file), fix=f"{_AGAIN}, of all that is pushed")
    pictures = [card.plot, *(run.heat_map for run in card.runs if run.heat_map is not None)]
    page = {README: readme, CARD: card_file}
    page |= {name: readme.parent / name for name in (*card.files, *pictures)}
    _check_sources(page, card.files)
    _check_tables(readme, card)
    return page


def _check_sources(page: Mapping[str, Path], hashes: Mapping[str, str]) -> None:
    for name, path in page.items():
        if not path.is_file():
            raise DataError(
                f"{name}, which the card shows, is missing", where=str(path), fix=f"{_AGAIN} and with `force`"
            )
        if name in hashes and hashlib.sha256(path.read_bytes()).hexdigest() != hashes[name]:
            raise DataError(
                "it has changed since the card was made from it", where=str(path), fix=f"{_AGAIN} and with `force`"
            )


def _check_tables(readme: Path, card: Card) -> None:
    """Words around the tables are the author's to change; their rows are as the card's numbers make them."""
    text = readme.read_text(encoding="utf-8").splitlines()
    rows = [line for line in render_card(card).splitlines() if line.startswith("|")]
    for row in rows:
        if row not in text:
            raise DataError(
                f"the row {row!r}, which {CARD} has, is not there or was changed",
                where=str(readme),
                fix=f"{_AGAIN} and with `force`, and write your own words around the tables",
            )


def _actions(branches: Iterable[_Branch]) -> Iterable[PushAction]:
    yield PushAction(do="create repository", branch=MAIN)
    for branch in branches:
        if branch.name != MAIN:
            yield PushAction(do="create branch", branch=branch.name)
        for name, path in sorted(branch.files.items()):
            yield PushAction(do="upload", branch=branch.name, path=name, size_bytes=path.stat().st_size)
        for name, reason in sorted(branch.left.items()):
            yield PushAction(do="leave out", branch=branch.name, path=name, reason=reason)
