"""The spelled form: parsed, never evaluated; canonical; and clear about what is wrong."""

from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


class SpelledTest(parameterized.TestCase):

  @parameterized.parameters(
      ('magnitude(1.0)', r"magnitude.*sparsity must be .*\[0, 1\), got 1.0"),
      ('magnitude(-0.1)', r'got -0.1'),
      ('rigl(1.5)', r"rigl.*got 1.5"),
      ('magnitude(cubic(0.9, end=10, initial=2))', r'initial must be'),
      ('magnitude(cubic(0.9, start=10, end=5))', r'end must be an integer of at least 10, got 5'),
      ('magnitude(True)', r'got True'),
      ("magnitude('0.9')", r"got '0.9'"),
      ('nm(4, 2)', r'n must not exceed m; got n=4, m=2'),
      ('nm(0, 4)', r'n must be a positive integer, got 0'),
      ('magnitude(0.9, pattern=n_m(2, 4))', r'n_m\(2, 4\) has sparsity 0.5, but 0.9'),
      ("fake_quantize('int9')", r"'int9' is not a grid; known: .*int8"),
      ("fake_quantize('int8', granularity='row')", r'granularity must be one of tensor, channel'),
      ("fake_quantize('int8', granularity='channel', group=32)", r"group= goes with gran"),
      ('lsq(bits=1)', r'bits must be an integer from 2 to 8, got 1'),
      ('low_rank(0)', r'a rank must be a positive integer'),
      ('clustered(1)', r'k must be an integer from 2 to 256, got 1'),
      ('nm(2)', r"'nm'.*missing a required argument: 'm'"),
      ('nm(2, 4, 6)', r'too many positional'),
      ('nm(2, 4, axis=1)', r"unexpected keyword argument 'axis'"),
      ('magnitud(0.9)', r"'magnitud' .*is not a known word, did you mean 'magnitude'; known are "),
      ('rigl(0.9, patern=erk)', r"argument 'patern', did you mean 'pattern'; it takes sparsity, "),
      ('magnitude', r"'magnitude' .* is a transform to be called"),
      ('erk', r'does not spell a transform'),
      ('nm(1 + 1, 4)', r"'1 \+ 1' .* is a Python expression"),
      ("__import__('os').system('true')", r'is a Python expression'),
      ("at('x', print(1))", r"'print' .* is not a known word"),
      ("(lambda: nm(2, 4))()", r'is a Python expression'),
      ('[nm(2, 4) for _ in (1,)]', r'is a Python expression'),
      ('nm(*[2, 4])', r'is a Python expression'),
      ("nm(**{'n': 2, 'm': 4})", r'\*\*'),
      ('nm(2, 4) | 3', r"'\|' joins transforms; found '3'"),
      ('nm(2, 4) & nm(2, 4)', r'is a Python expression'),
      ('nm(2, 4', r'is not a spelled transform'),
      ('', r'is not a spelled transform'),
      ('(' * 500 + ')' * 500, r'is not a spelled transform'),
      ('nm(2, 4)' * 10_000, r'at most 10000 characters'),
      ("at('(', nm(2, 4))", r'is not a pattern of weight names'),
  )
  def test_says_what_is_wrong(self, text, message):
    with self.assertRaisesRegex(ValueError, message):
      jsp.parse(text)

  @parameterized.parameters(
      'nm(2, 4)', "nm(2, 4) | fake_quantize('int8')", 'magnitude(0.9)',
      'magnitude(cubic(0.9, start=20, end=300, every=20))', 'rigl(0.9, every=20, distribution=erk)',
      "at('(.*/)?kernel', magnitude(0.5, pattern=block(4, 4)) | lsq(4))",
      "rules([('a', nm(2, 4)), ('.*', identity())])", 'lora(16, base=nm(2, 4) | nf4(group=32))',
      "low_rank({'a/kernel': 8})", "magnitude(0.5, pattern=channel('output'))",
      'clustered(16)', 'identity()',
      "fake_quantize('int4', granularity='group', group=32)")
  def test_spelled_form_is_canonical(self, text):
    self.assertEqual(jsp.spell(jsp.parse(text)), text)

  def test_chain_as_a_word(self):
    self.assertEqual(jsp.spell(jsp.parse('chain(nm(2, 4), lsq(4))')), 'nm(2, 4) | lsq(4)')

  def test_a_hand_made_function_has_no_spelled_form(self):
    schedule = jsp.schedule(lambda count: 0.5, start=0, end=4, every=2)
    with self.assertRaisesRegex(ValueError, 'has no spelled form'):
      jsp.spell(jsp.magnitude(schedule))


if __name__ == '__main__':
  absltest.main()
