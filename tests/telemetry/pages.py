"""A page of /metrics as a test reads it."""

from prometheus_client.openmetrics.parser import text_string_to_metric_families

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: str) -> Samples:
    """Every sample of a page, by its name and labels."""
    return {
        (one.name, tuple(sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def total(found: Samples, name: str, **labels: str) -> float:
    """The sum of the samples of that name which have these labels."""
    wanted = set(labels.items())
    return sum(value for (known, has), value in found.items() if known == name and wanted <= set(has))
