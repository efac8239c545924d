"""The command line's one-line notation for a named choice and its settings."""

from purify_audit.errors import PlanError


def parse_settings(text: str) -> tuple[str, dict[str, str]]:
    """Read `NAME` or `NAME:key=value,key=value`.

    Args:
        text: the notation; spaces around its parts are ignored. A value ends at a comma and may
            itself contain `=` and `:`.

    Returns:
        The name, and the settings in the order written. Values stay strings: what they mean is
        for the record they are validated by.

    Raises:
        PlanError: the name is empty, nothing follows the colon, a setting is not `key=value`,
            a key is repeated, or a key is `kind` (which in a record is the name).
    """
    name, colon, rest = (part.strip() for part in text.partition(":"))
    if not name:
        raise PlanError(f"'{text}' names nothing: write NAME or NAME:key=value,key=value")
    settings: dict[str, str] = {}
    for setting in rest.split(",") if colon else ():
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not (key and equals and value):
            raise PlanError(
                f"'{text}': '{setting.strip()}' is not key=value; write NAME:key=value,key=value"
            )
        if key == "kind":
            raise PlanError(f"'{text}': 'kind' is no setting; the name before the colon gives it")
        if key in settings:
            raise PlanError(f"'{text}' gives '{key}' twice")
        settings[key] = value
    return name, settings
