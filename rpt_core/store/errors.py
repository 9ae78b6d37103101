"""Errors whose text is one sentence a user can act on."""


class UserError(Exception):
    """Something the user can mend: what was wrong, where, what to do. The CLI prints it alone and exits 2."""


class NotCommitted(UserError):
    """A table version that is asked for but has no manifest."""


class Corrupt(UserError):
    """A committed shard or file no longer matches its manifest."""
