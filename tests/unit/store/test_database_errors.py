"""What people read where the database's address is wrong, or Postgres does not answer."""

import pytest
from sqlalchemy.exc import OperationalError

from shared.domain.errors import PermanentError, TransientError
from shared.store.database import async_url, explained_failures

SECRET = "hunter2"
URL = f"postgresql://u:{SECRET}@db.example/d"


@pytest.mark.parametrize("url", ["", SECRET, f"postgresql://u:{SECRET}@h:port/d"])
def test_an_address_that_cannot_be_read_is_named_without_its_text(url: str) -> None:
    with pytest.raises(
        PermanentError, match=r"^DATABASE_URL cannot be read; write it like postgresql://"
    ) as error:
        async_url(url)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    "failure",
    [ConnectionRefusedError(111, "refused"), OperationalError("SELECT 1", None, Exception("refused"))],
)
def test_a_failure_names_the_server_and_what_to_do(failure: Exception) -> None:
    with pytest.raises(TransientError) as error, explained_failures(URL):
        raise failure
    text = str(error.value)
    assert text.startswith("Postgres at db.example:5432, database 'd': ")
    assert "refused; does it run" in text
    assert SECRET not in text
    assert "sqlalche.me" not in text
