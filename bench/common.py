# SPDX-License-Identifier: MIT
"""What bench/run, bench/scale and bench/features share: what they say of the
machine, how rounds become a figure, and how results are kept."""

import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys


def progress(text):
    if sys.stderr.isatty():
        print(f'\r\033[K{text}', end='', file=sys.stderr, flush=True)


def text_of(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ''


def output_of(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True,
                              timeout=30)
        return (done.stdout or done.stderr).strip()
    except (OSError, subprocess.TimeoutExpired):
        return ''


def allocator():
    """What all programs run with."""
    libc = output_of('ldd', '--version').split('\n')[0]
    settings = [f'{name}={value}' for name, value in os.environ.items()
                if name.startswith('MALLOC_')
                or name in ('GLIBC_TUNABLES', 'LD_PRELOAD')]
    return f'{libc}, {" ".join(settings) or "default settings"}'


def machine():
    cpu = re.search(r'model name\s*: (.*)', text_of('/proc/cpuinfo'))
    memory = re.search(r'MemTotal:\s*(\d+)', text_of('/proc/meminfo'))
    return {
        'cpu': cpu.group(1) if cpu else platform.processor(),
        'cores': len(os.sched_getaffinity(0)),
        'memory_kib': int(memory.group(1)) if memory else 0,
        'kernel': platform.release(),
        'architecture': platform.machine(),
        'compiler': output_of('cc', '--version').split('\n')[0],
        'allocator': allocator(),
        'virtual': 'hypervisor' in text_of('/proc/cpuinfo'),
        'load_before': os.getloadavg()[0],
    }


def describe(m):
    """The machine in a line, and a second one if it had something to do."""
    text = (f'{m["cpu"]}, {m["cores"]} cores'
            f'{" (virtual)" if m["virtual"] else ""}, Linux {m["kernel"]}, '
            f'{m["compiler"]}; malloc of {m["allocator"]}')
    if m['load_before'] > 0.3:
        text += (f'\nNote: the load was {m["load_before"]:.2f} before the '
                 'run; the machine was not quiet.')
    return text


def now():
    return datetime.datetime.now(datetime.timezone.utc).isoformat()


def spread(values):
    return {'min': min(values), 'median': statistics.median(values),
            'max': max(values)}


def summary(values):
    return {**spread(values), 'rounds': values}


def rounded(value):
    """The same with six digits of each number: no measurement has more."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return float(f'{value:.6g}') if isinstance(value, float) else value


def lines_of(value, depth, indent=''):
    """JSON with a line for each member down to a depth, and compact below."""
    if not depth or not value or not isinstance(value, (dict, list)):
        return json.dumps(value)
    inner = indent + ' '
    if isinstance(value, dict):
        members = [f'"{key}": {lines_of(item, depth - 1, inner)}'
                   for key, item in value.items()]
        ends = '{}'
    else:
        members = [lines_of(item, depth - 1, inner) for item in value]
        ends = '[]'
    body = ',\n'.join(inner + member for member in members)
    return f'{ends[0]}\n{body}\n{indent}{ends[1]}'


def path_of(output, name):
    """A file that is named by itself, or by the folder that it goes to."""
    return output if output.endswith('.json') else os.path.join(output, name)


def write_json(path, results, depths):
    """Write results so that a diff shows the rows that differ.

    depths has the depth of lines_of() for members of results; 1 for others.
    """
    members = [f' "{key}": ' + lines_of(value, depths.get(key, 1), ' ')
               for key, value in rounded(results).items()]
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, 'w') as file:
        file.write('{\n' + ',\n'.join(members) + '\n}\n')
