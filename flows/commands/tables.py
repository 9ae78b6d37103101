"""`rpt tables`: versions, sizes and lineage; which one is current; checking, collecting, moving them."""


import typer

app = typer.Typer(help="Versions of the tables: list, use, verify, gc, push, pull.")
