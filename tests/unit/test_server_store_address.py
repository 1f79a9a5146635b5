"""The address of a store in PostgreSQL: which ones are taken, and that no password is shown."""

from __future__ import annotations

import pytest

from keyvouch_server.store_address import checked_address, without_password


@pytest.mark.parametrize(
    "address",
    [
        "postgresql://kv@/keys?host=/run/postgresql",
        "postgres:///keys",
        "postgresql://kv@localhost/keys",
        "postgresql://kv@127.0.0.1:5433/keys",
        "postgresql://kv@[::1]:5433/keys",
        "postgresql://kv:p%2Fss%40word@db.example.org/keys?sslmode=verify-full",
        "postgresql://kv@a.example.org:5432,b.example.org:5432/keys?sslmode=verify-full&target_session_attrs=primary",
        "postgresql://kv@db.example.org/keys?sslmode=disable",
    ],
)
def test_addresses_that_are_taken_as_they_are(address: str) -> None:
    assert checked_address(address) == address


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("", "postgresql://"),
        ("/var/lib/keys.db", "postgresql://"),
        ("mysql://kv@localhost/keys", "postgresql://"),
        ("postgresql://kv@localhost", "postgresql://"),
        ("postgresql://kv@localhost/", "postgresql://"),
        ("postgresql://kv@db.example.org/keys", "db.example.org"),
        ("postgresql://kv@10.0.0.7:5432/keys", "10.0.0.7"),
        ("postgresql://kv@[2001:db8::7]:5432/keys", "2001:db8::7"),
        ("postgresql://kv@localhost,db.example.org/keys", "db.example.org"),
        ("postgresql://kv@/keys?host=db.example.org", "db.example.org"),
        ("postgresql://kv@/keys?host=/run/postgresql,db.example.org", "db.example.org"),
        ("postgresql://kv@/keys?host=/run/postgresql&host=db.example.org", "db.example.org"),
        ("postgresql://kv@localhost/keys?service=far", "PGSERVICE"),
        ("postgresql://kv:p/ss@localhost/keys", "%2F"),
        ("postgresql://kv@localhost/keys#x", "%23"),
    ],
)
def test_addresses_that_are_refused_with_what_is_wrong(address: str, says: str) -> None:
    with pytest.raises(ValueError, match="address") as refused:
        checked_address(address)
    assert says in str(refused.value)


def test_the_environment_leads_nowhere_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db.example.org")
    assert checked_address("postgresql://kv@localhost/keys")
    with pytest.raises(ValueError, match=r"db\.example\.org"):
        checked_address("postgresql://kv@/keys")
    monkeypatch.setenv("PGSERVICE", "far")
    with pytest.raises(ValueError, match="PGSERVICE"):
        checked_address("postgresql://kv@localhost/keys")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://kv:secret@h/keys?sslmode=require", "postgresql://kv@h/keys?sslmode=require"),
        ("postgresql://kv@/keys?host=/run/pg&password=secret", "postgresql://kv@/keys?host=/run/pg"),
        ("postgresql://kv@h/keys?%70assword=secret&sslpassword=secret", "postgresql://kv@h/keys"),
        ("postgresql://kv@/keys?host=/run/pg", "postgresql://kv@/keys?host=/run/pg"),
    ],
)
def test_no_password_is_shown(address: str, shown: str) -> None:
    assert without_password(address) == shown
