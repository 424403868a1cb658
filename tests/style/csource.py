# SPDX-License-Identifier: MIT
"""C source text in two views: its code alone, and its comments alone."""

import re

TOKEN = re.compile(
    r'''(?P<comment>/\*.*?(?:\*/|\Z)|//(?:\\\n|[^\n])*)'''
    r'''|(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')'''
    r'''|(?P<include>^[ \t]*\#[ \t]*include[^\n]*)''',
    re.DOTALL | re.MULTILINE)


def _blank(text):
    return re.sub(r'[^\n]', ' ', text)


class CSource:
    """One file; every view keeps the line numbers of the original."""

    def __init__(self, path, text):
        self.path = path
        self.text = text
        self.lines = text.split('\n')
        if self.lines[-1] == '':
            self.lines.pop()
        self.comments = []  # (line, text)
        self.includes = []  # (line, '"' or '<', path)
        self.code = TOKEN.sub(self._take, text).split('\n')

    def _take(self, match):
        line = self.text.count('\n', 0, match.start()) + 1
        whole = match.group()
        if match.group('comment'):
            self.comments.append((line, whole))
        elif match.group('include'):
            # The match may begin with the indentation only, never above.
            target = re.search(r'([<"])([^>"]+)[>"]', whole)
            if target:
                self.includes.append((line, target[1], target[2]))
        elif match.group('string'):
            quote = whole[0]
            return quote + _blank(whole[1:-1]) + quote
        return _blank(whole)

    def calls(self, names):
        """(line, name) of every call of a function of these names."""
        pattern = re.compile(
            r'(?<![\w.])(?<!->)(' + '|'.join(names) + r')\s*\(')
        return [(number, found)
                for number, line in enumerate(self.code, 1)
                for found in pattern.findall(line)]

    def words(self, pattern):
        """(line, word) of every identifier that the pattern matches whole."""
        compiled = re.compile(r'(?<!\w)(' + pattern + r')(?!\w)')
        return [(number, found)
                for number, line in enumerate(self.code, 1)
                for found in compiled.findall(line)]

    def functions(self):
        """(first line, lines) of each function, its braces included."""
        start = None
        for number, line in enumerate(self.code, 1):
            if line.startswith('{') or re.match(r'[\w].*\)\s*\{\s*$', line):
                start = number
            elif line.startswith('}') and start:
                yield start, number - start + 1
                start = None
