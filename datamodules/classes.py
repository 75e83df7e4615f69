"""Which class names are learned: kept, joined, renamed or left out by config alone."""

from collections.abc import Mapping, Sequence

from launch.errors import DataError, nearest

ClassMap = Sequence[str] | Mapping[str, Sequence[str] | str] | None


def class_order(names: set[str]) -> list[str]:
    """Sorted; by value when all are whole numbers, so that 10 follows 9."""
    try:
        return sorted(names, key=lambda name: (int(name), name))
    except ValueError:
        return sorted(names)


def map_classes(
    labels: Sequence[str | None], classes: ClassMap, official: Sequence[str] | None
) -> tuple[list[str | None], list[str]]:
    """New class name of every label, and the names in the order of their index.

    Args:
        labels: class name of every example, None where unknown.
        classes: None keeps every name that occurs (official order, else sorted); a list keeps these, in its
            order; a mapping new name -> old names joins and renames, in its order. What is not listed
            becomes None.
        official: all names the dataset knows, in its own order; None when only those that occur are known.

    Raises:
        DataError: a name does not exist, or an old name is used twice, or a new class is empty.
    """
    present = {label for label in labels if label is not None}
    known = list(official) if official is not None else class_order(present)
    known += class_order(present - set(known))
    if classes is None:
        names = [name for name in known if name in present]
        return list(labels), names
    pairs = classes.items() if isinstance(classes, Mapping) else ((name, [name]) for name in classes)
    table: dict[str, str] = {}
    faults: list[str] = []
    names = []
    for new, old in pairs:
        names.append(str(new))
        members = [old] if isinstance(old, str | int) else list(old or [])
        if not members:
            faults.append(f"class '{new}' has no members")
        for member in map(str, members):
            if member not in known:
                faults.append(f"there is no class '{member}'.{nearest(member, known)}")
            elif member in table:
                faults.append(f"'{member}' is used twice (for '{table[member]}' and '{new}')")
            else:
                table[member] = str(new)
    if faults:
        raise DataError(f"data.classes: {'; '.join(faults)} The classes are: {', '.join(known)}.")
    return [None if label is None else table.get(label) for label in labels], names
