"""Whether this host can have the versions that serve: it made them, or shares them with those who did."""

from __future__ import annotations

from service.place import ServeError
from service.settings import Settings


def check_shared(settings: Settings) -> None:
    """Refuse a start that would never become ready, or would go its own way.

    Raises `ServeError` when another host made the version in service and nothing is shared, and `StorageError` when
    what is shared is of a kind that this program cannot reach. A store that does not answer is none of its business:
    the server starts, and waits for it.
    """
    if settings.store.artefacts:
        from training.storage import Storage

        Storage(settings.store.artefacts)
        return
    if settings.store_url.startswith("sqlite"):
        return
    import sqlalchemy as sa

    from monitoring.store import connect
    from training.registry import Registry, UnknownVersion

    engine = connect(settings.store_url)
    registry = Registry(engine, settings.models_dir, settings.model.name)
    try:
        champion = registry.live().champion
        if champion is not None:
            registry.path(champion)
    except sa.exc.SQLAlchemyError:
        return
    except UnknownVersion as error:
        raise ServeError(
            f"version {champion} serves, and was made on another host: it is not in {settings.models_dir}. Replicas on "
            "several hosts share versions by [store] artefacts, a folder that all of them mount or a URL such as "
            "s3://bucket/evergreen: set it on every one of them, and restart those that have the versions first"
        ) from error
    finally:
        engine.dispose()
