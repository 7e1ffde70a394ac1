"""What the loopback Hub checks where the real one does: cards, `.eval_results/*.yaml` and `eval.yaml`.

Part of `loopback_hub.py`. Written from the Hub's documentation of its metadata, as far as our cards use them;
what passes here may still be refused there. Each check gives sentences about what is wrong; none is a pass.
"""

import datetime
import re

import yaml

LICENSES = {
    *("afl-3.0", "agpl-3.0", "apache-2.0", "artistic-2.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsl-1.0"),
    *("cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0"),
    *("cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0"),
    *("cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "gpl", "gpl-2.0", "gpl-3.0", "isc"),
    *(
        "lgpl",
        "lgpl-2.1",
        "lgpl-3.0",
        "mit",
        "mpl-2.0",
        "odbl",
        "odc-by",
        "openrail",
        "other",
        "pddl",
        "unknown",
    ),
    *("unlicense", "wtfpl", "zlib"),
}
SPACE_SDKS = ("gradio", "docker", "static")
SPACE_COLORS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
CARD_LISTS = (
    "annotations_creators",
    "datasets",
    "language",
    "metrics",
    "size_categories",
    "source_datasets",
    "tags",
)


def front_matter(card):
    """The YAML block between the two lines of dashes that open a card, or None without one."""
    found = re.match(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*$", card, re.DOTALL | re.MULTILINE)
    return found and found[1]


def read_metadata(card):
    """The metadata of a card as a dictionary; {} if there are none or they are broken."""
    try:
        metadata = yaml.safe_load(front_matter(card) or "")
    except yaml.YAMLError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def check_card(card, repo_type):
    block = front_matter(card)
    if block is None:
        return ["metadata is missing"] if repo_type == "space" else []
    try:
        metadata = yaml.safe_load(block)
    except yaml.YAMLError as error:
        return [f"metadata is no valid YAML: {' '.join(str(error).split())}"]
    if metadata is None:
        return []
    if not isinstance(metadata, dict):
        return [f"metadata must be a mapping, not {type(metadata).__name__}"]
    problems = [*check_license(metadata), *check_card_lists(metadata), *check_model_index(metadata)]
    if repo_type == "dataset":
        problems += check_configs(metadata)
    if repo_type == "space":
        problems += check_space(metadata)
    return problems


def check_license(metadata):
    names = metadata.get("license", [])
    unknown = [name for name in (names if isinstance(names, list) else [names]) if name not in LICENSES]
    if unknown:
        return [f'"license" must be an identifier that the Hub knows, such as apache-2.0, not {unknown[0]!r}']
    return []


def check_card_lists(metadata):
    for key in CARD_LISTS:
        value = metadata.get(key, [])
        if not is_text(value) and not is_list_of(value, is_text):
            yield f'"{key}" must be a string or a list of strings'


def check_model_index(metadata):
    models = metadata.get("model-index", [])
    if not is_list_of(models, is_mapping):
        return ['"model-index" must be a list of models with a name and results']
    problems = []
    for model_number, model in enumerate(models):
        where = f'"model-index[{model_number}]'
        if not is_text(model.get("name")):
            problems.append(f'{where}.name" is required')
        if not is_list_of(model.get("results"), is_mapping):
            problems.append(f'{where}.results" must be a list')
            continue
        for number, result in enumerate(model["results"]):
            problems += check_result(result, f"{where}.results[{number}]")
    return problems


def check_result(result, where):
    if not is_text((result.get("task") or {}).get("type")):
        yield f'{where}.task.type" is required'
    for key in ("type", "name"):
        if not is_text((result.get("dataset") or {}).get(key)):
            yield f'{where}.dataset.{key}" is required'
    metrics = result.get("metrics")
    if not metrics or not is_list_of(metrics, is_mapping):
        yield f'{where}.metrics" must be a list with at least one metric'
        return
    for number, metric in enumerate(metrics):
        if not is_text(metric.get("type")):
            yield f'{where}.metrics[{number}].type" is required'
        if metric.get("value") is None:
            yield f'{where}.metrics[{number}].value" is required'


def check_configs(metadata):
    configs = metadata.get("configs", [])
    if not is_list_of(configs, is_mapping):
        return ['"configs" must be a list of configurations']
    problems = []
    names = [config.get("config_name") for config in configs]
    if not all(is_text(name) for name in names):
        problems.append('"configs[].config_name" must be a string')
    elif len(set(names)) < len(names):
        problems.append(f'"configs[].config_name" must be unique, but they are {", ".join(names)}')
    if sum(bool(config.get("default")) for config in configs) > 1:
        problems.append('"configs[].default" may be true once')
    for number, config in enumerate(configs):
        if "data_files" in config and not is_data_files(config["data_files"]):
            problems.append(
                f'"configs[{number}].data_files" must be a pattern, a list of them or of split and path'
            )
    return problems


def is_data_files(value):
    def is_split(entry):
        return is_mapping(entry) and is_text(entry.get("split")) and is_pattern(entry.get("path"))

    return bool(value) and (is_pattern(value) or is_list_of(value, is_split))


def is_pattern(value):
    return is_text(value) or (bool(value) and is_list_of(value, is_text))


def check_space(metadata):
    for key, allowed in (("sdk", SPACE_SDKS), ("colorFrom", SPACE_COLORS), ("colorTo", SPACE_COLORS)):
        if (key == "sdk" or key in metadata) and metadata.get(key) not in allowed:
            yield f'"{key}" must be one of {", ".join(allowed)}, not {metadata.get(key)!r}'
    if "sdk_version" in metadata and not is_text(metadata["sdk_version"]):
        yield '"sdk_version" must be a string'
    if len(str(metadata.get("short_description", ""))) > 60:
        yield '"short_description" may have at most 60 characters'


def check_file(path, content, repo_type):
    """What is wrong with a file that is to be committed, for the files that the Hub reads itself."""
    if path == "README.md":
        return list(check_card(content.decode(errors="replace"), repo_type))
    if repo_type == "model" and re.fullmatch(r"\.eval_results/[^/]+\.ya?ml", path):
        check = check_eval_results
    elif repo_type == "dataset" and path == "eval.yaml":
        check = check_benchmark
    else:
        return []
    try:
        return list(check(yaml.safe_load(content)))
    except yaml.YAMLError as error:
        return [f"no valid YAML: {' '.join(str(error).split())}"]


def check_eval_results(entries):
    """`.eval_results/*.yaml` of a model: a list of one value each for a task of a benchmark dataset."""
    if not entries or not is_list_of(entries, is_mapping):
        yield "must be a list of results"
        return
    seen = set()
    for number, entry in enumerate(entries):
        dataset, source = entry.get("dataset"), entry.get("source")
        if not is_mapping(dataset) or not all(is_text(dataset.get(key)) for key in ("id", "task_id")):
            yield f"[{number}].dataset must have id and task_id"
        elif (task := (dataset["id"], dataset["task_id"])) in seen:
            yield f"[{number}].dataset repeats task {task[1]} of {task[0]}: one value per task"
        else:
            seen.add(task)
        if entry.get("value") is None:
            yield f"[{number}].value is required"
        if not is_date(entry.get("date", "2000-01-01")):
            yield f"[{number}].date must be an ISO 8601 date"
        if source is not None and not (is_mapping(source) and is_text(source.get("url"))):
            yield f"[{number}].source must have url"


def check_benchmark(benchmark):
    """`eval.yaml` of a dataset: the tasks that `.eval_results` of models may name."""
    if not is_mapping(benchmark):
        yield "must be a mapping"
        return
    for key in ("name", "evaluation_framework"):
        if not is_text(benchmark.get(key)):
            yield f"{key} is required"
    tasks = benchmark.get("tasks")
    if not tasks or not is_list_of(tasks, is_mapping) or not all(is_text(task.get("id")) for task in tasks):
        yield "tasks must be a list with at least one task, and each must have id"
    elif len({task["id"] for task in tasks}) < len(tasks):
        yield "tasks[].id must be unique"


def is_text(value):
    return isinstance(value, str) and bool(value.strip())


def is_mapping(value):
    return isinstance(value, dict)


def is_list_of(value, is_item):
    return isinstance(value, list) and all(is_item(item) for item in value)


def is_date(value):
    try:
        return isinstance(value, datetime.date) or bool(datetime.datetime.fromisoformat(value))
    except (TypeError, ValueError):
        return False
