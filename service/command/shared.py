"""Whether this host can take part: it has, or can get, the versions that serve, and hashes as the others do."""

from __future__ import annotations

from service import shared_keys, tokens
from service.place import ServeError
from service.secret_file import home_id
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


def take_part(settings: Settings) -> None:
    """Bring tokens and keys to this host before its workers read them, when the store answers.

    A host that is alone needs nothing; its controller follows the tokens. Raises `HomeGone`, and `SettingsError` when
    this home would hash columns otherwise than the other replicas.
    """
    if settings.keeps_keys_alone:
        return
    import sqlalchemy as sa

    from monitoring.store import open_store
    from training.homes import HomeGone, is_gone

    home = home_id(settings)
    try:
        engine = open_store(settings.store_url)
    except sa.exc.SQLAlchemyError:
        shared_keys.check_without_store(settings)
        return
    try:
        if is_gone(engine, home):
            raise HomeGone(home, settings.var)
        tokens.follow(engine, settings, home)
        shared_keys.follow(engine, settings)
    except sa.exc.SQLAlchemyError:
        shared_keys.check_without_store(settings)
    finally:
        engine.dispose()
