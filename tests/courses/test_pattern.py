"""Run the code of docs/pattern.md on the database under test."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection
from django.test.utils import isolate_apps

from tests.support.docs import DOCS, python_blocks
from tests.support.threads import ConcurrentThread

pytestmark = pytest.mark.django_db(transaction=True)

WRITERS = 8
COMMENTS_PER_WRITER = 10


@pytest.fixture
def pattern() -> Iterator[SimpleNamespace]:
    """Return the names that the page defines, with the tables of its models."""
    with isolate_apps("courses"):
        names: dict[str, Any] = {"__name__": "courses.pattern"}
        exec("\n\n".join(python_blocks(DOCS / "pattern.md")), names)
    page = SimpleNamespace(**names)
    with connection.schema_editor() as editor:
        editor.create_model(page.Article)
        editor.create_model(page.Comment)
    try:
        yield page
    finally:
        with connection.schema_editor() as editor:
            editor.delete_model(page.Comment)
            editor.delete_model(page.Article)


@pytest.fixture
def article(pattern: SimpleNamespace) -> Any:
    return pattern.Article.objects.create(title="Counters")


def count_of(article: Any) -> int:
    return type(article).objects.get(pk=article.pk).comment_count


def test_services_move_the_counter_with_the_rows(pattern: SimpleNamespace, article: Any) -> None:
    comment = pattern.add_comment(article=article, text="First")
    pattern.add_comment(article=article, text="Second")
    assert count_of(article) == 2
    assert pattern.hide_comment(comment=comment) is True
    assert pattern.hide_comment(comment=comment) is False
    assert count_of(article) == 1
    assert not pattern.Article.objects.drifted().exists()


def test_add_comment_raises_for_a_deleted_article(pattern: SimpleNamespace, article: Any) -> None:
    pattern.Article.objects.filter(pk=article.pk).delete()
    with pytest.raises(pattern.Article.DoesNotExist):
        pattern.add_comment(article=article, text="Too late")
    assert not pattern.Comment.objects.exists()


def test_concurrent_writers_neither_deadlock_nor_drift(
    pattern: SimpleNamespace, article: Any
) -> None:
    def write() -> None:
        for number in range(COMMENTS_PER_WRITER):
            comment = pattern.add_comment(article=article, text=str(number))
            if number % 2:
                pattern.hide_comment(comment=comment)

    threads = [ConcurrentThread(write) for _ in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.finish()
    assert count_of(article) == WRITERS * COMMENTS_PER_WRITER // 2
    assert not pattern.Article.objects.drifted().exists()


def test_saving_a_stale_article_keeps_the_counter(pattern: SimpleNamespace, article: Any) -> None:
    pattern.add_comment(article=article, text="Added after the article was loaded")
    article.title = "Denormalized counters"
    article.save()
    assert count_of(article) == 1


def test_rebuild_corrects_drifted_articles_only(pattern: SimpleNamespace, article: Any) -> None:
    correct = pattern.Article.objects.create(title="Correct")
    pattern.add_comment(article=correct, text="Counted")
    pattern.Article.objects.filter(pk=article.pk).update(comment_count=7)
    assert pattern.Article.objects.drifted().get().drift == 7
    assert pattern.rebuild() == [article.pk]
    assert (count_of(article), count_of(correct)) == (0, 1)
    assert pattern.rebuild() == []


def test_rebuild_finds_counters_that_are_too_low(pattern: SimpleNamespace, article: Any) -> None:
    pattern.add_comment(article=article, text="Counted")
    pattern.Article.objects.filter(pk=article.pk).update(comment_count=0)
    assert pattern.Article.objects.drifted().get().drift == -1
    pattern.rebuild()
    assert count_of(article) == 1


def test_correct_counts_comments_that_were_committed_while_it_waited(
    pattern: SimpleNamespace, article: Any
) -> None:
    pattern.Article.objects.filter(pk=article.pk).update(comment_count=7)

    @pattern.retry_transaction()
    def add_while_rebuilding() -> ConcurrentThread:
        pattern.add_comment(article=article, text="Committed last")
        rebuilding = ConcurrentThread(pattern.rebuild)
        rebuilding.start_and_wait_until_blocked()
        return rebuilding

    add_while_rebuilding().finish()
    assert count_of(article) == 1
