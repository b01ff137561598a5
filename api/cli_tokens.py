"""`loraq token`: makes, lists and revokes tokens, for operators."""

# pyright: reportUnknownMemberType=false
# redis-py types its methods in part.

from typing import Annotated

import typer
from rich.table import Table

from api.auth import NoSuchToken, create_token, find_fingerprint, fingerprint_of, list_tokens
from api.cli_operator import operator, redis_itself
from api.cli_output import ExitCode, Output, printable
from jobs import audit

token_app = typer.Typer(help="For operators: tokens, which name an owner.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one value a line.")]


@token_app.command("create")
def create(
    owner: Annotated[str, typer.Argument(help="Who will hold it: a-z, 0-9 and -, at most 40 characters.")],
    name: Annotated[str, typer.Option(help="What it is for, as a note to yourself.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make a token. Needs Redis (LORAQ_REDIS_URL), not the API; the token is shown once and stored only as a hash."""
    output = Output(as_json)
    with redis_itself(output) as redis, redis.pipeline() as pipeline:
        try:
            token = create_token(pipeline, owner, name)
        except ValueError as error:
            output.error("usage", str(error))
            raise typer.Exit(ExitCode.INVALID) from None
        audit.write(pipeline, operator(), audit.Action.TOKEN_CREATE, fingerprint_of(token), owner=owner, name=name)
        pipeline.execute()
    if as_json:
        output.json({"owner": owner, "token": token, "fingerprint": fingerprint_of(token)})
    else:
        output.out.print(token)
        output.say(f"A token of {owner}. Keep it: it is not shown again.")


@token_app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List all tokens, by owner: what they are for, and the fingerprint by which they are revoked."""
    output = Output(as_json)
    with redis_itself(output) as redis:
        tokens = list_tokens(redis)
    if as_json:
        for token in tokens:
            output.json(token)
        return
    table = Table("owner", "fingerprint", "created", "name", box=None, padding=(0, 2, 0, 0))
    for token in tokens:
        created = f"{token.created_at.astimezone():%Y-%m-%d %H:%M}"
        table.add_row(token.owner, token.fingerprint, created, printable(token.name))
    output.out.print(table)


@token_app.command("revoke")
def revoke(
    fingerprint: Annotated[str, typer.Argument(help="As `loraq token list` shows it, or its first six digits.")],
    as_json: AsJson = False,
) -> None:
    """Revoke a token: from now on it opens nothing. Jobs of its owner go on."""
    output = Output(as_json)
    with redis_itself(output) as redis, redis.pipeline() as pipeline:
        try:
            key, token = find_fingerprint(redis, fingerprint.lower())
        except NoSuchToken as error:
            output.error(error.code, str(error))
            raise typer.Exit(ExitCode.REFUSED) from None
        pipeline.delete(key)
        audit.write(
            pipeline, operator(), audit.Action.TOKEN_REVOKE, token.fingerprint, owner=token.owner, name=token.name
        )
        pipeline.execute()
    if as_json:
        output.json(token)
    else:
        output.out.print(f"Token {token.fingerprint} of {token.owner} opens nothing now.")
